"""Load pretrained networks, weight files and tokenizers, and reject incomplete files.

If a file lacks weights, ``transformers`` and diffusers only log a warning and initialize the weights randomly.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from rnri.validation import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Network = TypeVar("Network", bound="PreTrainedModel")

VOCABULARY_FILES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("tokenizer.model",),
    ("vocab.txt",),
)
"""Groups of vocabulary files; a tokenizer needs all files of one of these groups."""

MAX_PADDING_ROWS = 127
"""Largest allowed number of unused rows in the token embedding of a text encoder with a small vocabulary.

Token embeddings are often padded to a multiple of 128 rows.
"""

MAX_PADDING_SHARE = 0.005
"""Largest allowed fraction of unused rows in the token embedding of a text encoder with a large vocabulary.

For example, Qwen has several hundred unused rows.
"""

MAX_SHARE_WITHOUT_MERGE = 0.01
"""Largest allowed fraction of the tokens in a byte-pair tokenizer's vocabulary that none of its merges produces."""

CALL_STATE = ("truncation", "padding")
"""Entries of a fast tokenizer's ``tokenizer.json`` that every call of the tokenizer overwrites."""

DOWNLOAD = "download the weights and config.json again"


def load_network(
    network_class: type[Network],
    path: str | Path,
    *,
    title: str,
    model_type: str,
    harmless: Collection[str] = (),
    **options: Any,
) -> Network:
    """Load a network of ``transformers``, and check that the file contains every weight of the network.

    Args:
        network_class: class of the network.
        path: local folder or hub id.
        title: name of the network in error messages, such as "a CLIP model".
        model_type: the required ``model_type`` in config.json. Without a check of ``model_type``, ``transformers``
            would load a model of another type with random weights.
        harmless: substrings of the names of weights that may be missing or unknown, because the network does not use
            them.
        options: further arguments of ``network_class.from_pretrained``.

    Raises:
        ValueError: the network cannot be loaded or has another type; or a weight is missing, unknown, not finite or of
            a wrong shape.
    """
    check_model_type(path, title, model_type, local_files_only=options.get("local_files_only", False))
    try:
        network, loading_info = network_class.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        check_loading_info("the weights", network_class.__name__, loading_info, unused=harmless, extra=harmless)
        check_finite("the weights", network.state_dict())
    except Exception as error:  # damaged files raise errors of various types
        raise ValueError(f"cannot load {title} from {path}: {first_line(error)}") from error
    return network


def check_model_type(path: str | Path, title: str, *model_types: str, local_files_only: bool) -> str:
    """Return the ``model_type`` in the config.json of a local folder or hub id, which must be one of ``model_types``.

    ``title`` is the name of the network in the error message, such as "a CLIP model".

    Raises:
        ValueError: the config.json cannot be read or has another ``model_type``.
    """
    from transformers import AutoConfig  # this import takes seconds

    try:
        actual_type = AutoConfig.from_pretrained(path, local_files_only=local_files_only).model_type
        if actual_type not in model_types:
            allowed = " or ".join(map(repr, model_types))
            raise ValueError(f"model_type in config.json must be {allowed}, got {actual_type!r}.")
    except Exception as error:  # damaged files raise errors of various types
        raise ValueError(f"cannot load {title} from {path}: {first_line(error)}") from error
    return actual_type


def check_loading_info(
    owner: str,
    class_name: str,
    loading_info: Mapping[str, Collection[Any]],
    *,
    unused: Collection[str] = (),
    extra: Collection[str] = (),
) -> None:
    """Raise ValueError if weights of a network are missing, are unknown, or have a wrong shape.

    Args:
        owner: description of the weights in the error message, such as "the weights of the component 'unet'".
        class_name: name of the network's class.
        loading_info: the second return value of ``from_pretrained(..., output_loading_info=True)``.
        unused: substrings of the names of weights that may be missing.
        extra: substrings of the names of unknown weights that the file may contain.
    """
    mismatched = [key if isinstance(key, str) else key[0] for key in loading_info["mismatched_keys"]]
    problems = {
        "do not contain": _without(loading_info["missing_keys"], unused),
        "have a wrong shape for": sorted(mismatched),
        f"contain, in addition to those of a {class_name} with its config.json,": _without(
            loading_info["unexpected_keys"], extra
        ),
    }
    for problem, names in problems.items():
        if names:
            raise ValueError(f"{owner} {problem} {names[0]} ({len(names)} such weights): {DOWNLOAD}.")


def _without(keys: Collection[Any], parts: Collection[str]) -> list[str]:
    return sorted(str(key) for key in keys if not any(part in str(key) for part in parts))


def check_finite(owner: str, weights: Mapping[str, Tensor], remedy: str = DOWNLOAD) -> None:
    """Raise ValueError if one of ``weights`` is NaN or infinite."""
    name = next((name for name, weight in weights.items() if not weight.isfinite().all()), None)
    if name is not None:
        raise ValueError(f"{owner} are not finite, in {name}: {remedy}.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return a dict of the tensors in the file ``path``, which was written by safetensors or by ``torch.save``.

    Raises:
        ValueError: the file is missing or damaged, does not contain tensors by name, or has a value that is not finite.
    """
    try:
        if str(path).endswith(".safetensors"):
            weights: Any = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # raised by the file system, safetensors, pickle or zipfile
        raise ValueError(f"{path} cannot be read as weights ({first_line(error)})") from None
    if not isinstance(weights, Mapping) or not weights:
        content = "an empty file" if isinstance(weights, Mapping) else type(weights).__name__
        raise ValueError(f"{path} must contain a dict of tensors, got {content}")
    for name, weight in weights.items():
        if not isinstance(weight, Tensor):
            raise ValueError(f"{path} must contain a dict of tensors, got {type(weight).__name__} for {name!r}")
        if not weight.isfinite().all():
            raise ValueError(f"{path} has weights that are not finite, for example {name}")
    return dict(weights)


def load_tokenizer(path: str | Path, *, local_files_only: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local folder or hub id.

    Raises:
        ValueError: the vocabulary is missing or damaged.
    """
    from transformers import AutoTokenizer  # this import takes seconds

    if Path(path).is_dir():
        check_vocabulary_files(Path(path), f"folder {str(path)!r}", "its tokenizer")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=local_files_only)
    except Exception as error:  # damaged files raise errors of various types
        raise ValueError(
            f"cannot load the tokenizer of {path} ({type(error).__name__}: {first_line(error)}): tokenizer.json, or "
            "vocab.json, is incomplete; download the tokenizer's files again."
        ) from error


def check_vocabulary_files(folder: Path, owner: str, part: str) -> None:
    """Raise ValueError unless ``folder`` contains the vocabulary files of a tokenizer.

    Args:
        folder: folder of the tokenizer.
        owner: description of the checkpoint's folder, for the error message.
        part: description of the tokenizer, for the error message, such as "its tokenizer".
    """
    if not any(all((folder / file).is_file() for file in files) for files in VOCABULARY_FILES):
        raise ValueError(
            f"{owner} lacks the vocabulary of {part}: download tokenizer.json, or vocab.json and merges.txt; "
            "without a vocabulary all prompts would have the same tokens."
        )


def check_vocabulary(owner: str, tokenizer: PreTrainedTokenizerBase, embeddings: int) -> None:
    """Raise ValueError unless the text encoder has one embedding per token; a few unused embeddings are allowed.

    Args:
        owner: description of the tokenizer in the error message, such as "the pipeline's tokenizer".
        tokenizer: the tokenizer.
        embeddings: number of token embeddings of the text encoder.
    """
    vocabulary = tokenizer.get_vocab()
    max_token = max(vocabulary.values())
    if max_token >= embeddings:
        raise ValueError(
            f"{owner} has token ids up to {max_token}, but its text encoder has {embeddings} embeddings: tokenizer and "
            "text encoder do not belong together; take both from one checkpoint."
        )
    max_padding = max(min(MAX_PADDING_ROWS, 0.1 * embeddings), MAX_PADDING_SHARE * embeddings)
    if embeddings - len(vocabulary) > max_padding:
        raise ValueError(
            f"the vocabulary of {owner} has {len(vocabulary)} entries, but its text encoder has {embeddings} "
            "embeddings: tokenizer.json, or vocab.json, is incomplete or of another checkpoint; download the "
            "tokenizer's files again."
        )


def check_merges(owner: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the merges of a byte-pair tokenizer do not produce at least 99 % of its vocabulary."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return
    content = backend_content(tokenizer)
    model = content["model"]
    if model.get("type") != "BPE" or model.get("ignore_merges"):
        return
    suffix = model.get("end_of_word_suffix") or ""
    prefix_length = len(model.get("continuing_subword_prefix") or "")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    merged = {left + right[prefix_length:] for left, right in pairs}
    added = {token["content"] for token in content["added_tokens"]}
    long_tokens = [token for token in model["vocab"] if token not in added and len(token.removesuffix(suffix)) > 1]
    unreachable = [token for token in long_tokens if token not in merged]
    if len(unreachable) > MAX_SHARE_WITHOUT_MERGE * len(model["vocab"]):
        raise ValueError(
            f"{owner} has merges for only {len(long_tokens) - len(unreachable)} of the {len(long_tokens)} longer "
            f"tokens of its vocabulary, and no merge for {unreachable[-1]!r}: merges.txt, or the merges in "
            "tokenizer.json, are incomplete; download the tokenizer's files again."
        )


def backend_content(tokenizer: Any) -> dict[str, Any]:
    """Return the content of a fast tokenizer's ``tokenizer.json``, without the entries that each call overwrites."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in content.items() if key not in CALL_STATE}
