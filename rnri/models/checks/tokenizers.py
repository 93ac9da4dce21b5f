"""Checks that each tokenizer of a pipeline is complete and fits its text encoder, and the tokenizers' settings."""

from __future__ import annotations

import json
from typing import Any

from diffusers import DiffusionPipeline
from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_PADDING_ROWS = 127
"""Largest number of padding rows of an embedding, which is often padded to a multiple of 128 rows."""

MAX_SHARE_WITHOUT_MERGE = 0.01
"""Largest allowed fraction of a vocabulary's tokens that no merge of the tokenizer produces."""

CALL_STATE = ("truncation", "padding")
"""Settings in a tokenizer's backend that depend on the previous call; the fingerprint ignores them."""


def check_tokenizers(pipeline: DiffusionPipeline) -> None:
    """Raise ValueError if a tokenizer's vocabulary is incomplete or belongs to another text encoder."""
    for name, tokenizer in _tokenizers(pipeline).items():
        encoder = _text_encoder(pipeline, name)
        if encoder is not None:
            _check_vocabulary_size(name, tokenizer, encoder)
            _check_length(name, tokenizer, encoder)
        _check_merges(name, tokenizer)


def limit_prompt_lengths(pipeline: DiffusionPipeline) -> None:
    """Limit each tokenizer's ``model_max_length`` to the maximum number of tokens of its text encoder.

    Without this limit, a tokenizer whose config has no ``model_max_length`` would pad prompts to 1e30 tokens.
    """
    for name, tokenizer in _tokenizers(pipeline).items():
        positions = _positions(_text_encoder(pipeline, name))
        if positions is not None and tokenizer.model_max_length > positions:
            tokenizer.model_max_length = positions
    if getattr(pipeline, "tokenizer_max_length", None) is not None:  # some pipelines cache the value
        pipeline.tokenizer_max_length = pipeline.tokenizer.model_max_length


def tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """Return all settings of a tokenizer that determine the tokens of a prompt, for the fingerprint."""
    has_backend = getattr(tokenizer, "backend_tokenizer", None) is not None
    words = _backend_content(tokenizer) if has_backend else sorted(tokenizer.get_vocab().items())
    names = ("model_max_length", "padding_side", "truncation_side")
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    return {"words": words, "special": special} | {name: getattr(tokenizer, name, None) for name in names}


def _tokenizers(pipeline: DiffusionPipeline) -> dict[str, PreTrainedTokenizerBase]:
    components = pipeline.components.items()
    return {name: value for name, value in components if name.startswith("tokenizer") and value is not None}


def _text_encoder(pipeline: DiffusionPipeline, tokenizer_name: str) -> PreTrainedModel | None:
    return getattr(pipeline, tokenizer_name.replace("tokenizer", "text_encoder"), None)


def _positions(encoder: PreTrainedModel | None) -> int | None:
    """Return the maximum number of tokens of a text encoder; None if there is no maximum, as for T5."""
    return getattr(getattr(encoder, "config", None), "max_position_embeddings", None)


def _backend_content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in content.items() if key not in CALL_STATE}


def _check_vocabulary_size(name: str, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel) -> None:
    """Raise ValueError unless the text encoder has one embedding per token of the vocabulary, plus padding rows."""
    vocabulary = tokenizer.get_vocab()
    embeddings = encoder.get_input_embeddings().num_embeddings
    max_token = max(vocabulary.values())
    if max_token >= embeddings:
        raise ValueError(
            f"the pipeline's {name} has token ids up to {max_token}, but its text encoder has {embeddings} embeddings: "
            "tokenizer and text encoder do not belong together."
        )
    if embeddings - len(vocabulary) > min(MAX_PADDING_ROWS, 0.1 * embeddings):
        raise ValueError(
            f"the vocabulary of the pipeline's {name} has {len(vocabulary)} entries, but its text encoder has "
            f"{embeddings} embeddings: tokenizer.json, or vocab.json, is incomplete or of another checkpoint; "
            "download the tokenizer's files again."
        )


def _check_length(name: str, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel) -> None:
    positions = _positions(encoder)
    if positions is not None and tokenizer.model_max_length > positions:
        raise ValueError(
            f"model_max_length={tokenizer.model_max_length:g} of the pipeline's {name} exceeds the number of positions "
            f"of its text encoder (max_position_embeddings={positions}): set pipe.{name}.model_max_length = "
            f"{positions}."
        )


def _check_merges(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the merges of a byte-pair tokenizer do not produce at least 99 % of its vocabulary."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return
    content = _backend_content(tokenizer)
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
            f"the pipeline's {name} has merges for only {len(long_tokens) - len(unreachable)} of the "
            f"{len(long_tokens)} longer tokens of its vocabulary, and no merge for {unreachable[-1]!r}: merges.txt, or "
            "the merges in tokenizer.json, are incomplete; download the tokenizer's files again."
        )
