"""What a tokenizer must be for its text encoder, and what it is, as text."""

from __future__ import annotations

import json
import re

from diffusers import DiffusionPipeline
from torch import nn
from transformers import PreTrainedTokenizerBase

PROBES = ("cat", "dog", "red", "sun", "owl", "car", "hat", "cow", "box")  # no vocabulary takes all for one

PADDED_ROWS = 127
"""An embedding may have that many rows more than there are tokens: they are padded to multiples of 128 at most."""

UNREACHED = 0.01
"""The share of a vocabulary's tokens that no merge may make."""

WORDS, WHOLE = 100, 0.8
"""So many whole words of the vocabulary are tried; that share of them comes out as single tokens."""

STATE = ("truncation", "padding")
"""What a call leaves behind in a tokenizer's backend."""


def check_tokenizers(pipeline: DiffusionPipeline) -> None:
    """ValueError where a tokenizer cannot tell prompts apart, is incomplete, or belongs to another text encoder."""
    for name, tokenizer in pipeline.components.items():
        if name.startswith("tokenizer") and tokenizer is not None:
            encoder = getattr(pipeline, text_encoder_name(name), None)
            _check_probes(name, tokenizer)
            if encoder is not None:
                _check_rows(name, tokenizer, encoder)
                _check_length(name, tokenizer, encoder)
            _check_merges(name, tokenizer)
            _check_words(name, tokenizer)


def text_encoder_name(name: str) -> str:
    """The text encoder that the tokenizer ``name`` is for."""
    return name.replace("tokenizer", "text_encoder")


def limit_prompt_lengths(pipeline: DiffusionPipeline) -> None:
    """Tokenizers that do not say how long a prompt may be are told what their text encoder has positions for.

    Without ``model_max_length`` in its configuration a tokenizer pads to 1e30 tokens; a prompt that fits comes out
    the same.
    """
    for name, tokenizer in pipeline.components.items():
        if name.startswith("tokenizer") and tokenizer is not None:
            positions = _positions(getattr(pipeline, text_encoder_name(name), None))
            if positions is not None and tokenizer.model_max_length > positions:
                tokenizer.model_max_length = positions
    if getattr(pipeline, "tokenizer_max_length", None) is not None:  # where a pipeline keeps it from the beginning
        pipeline.tokenizer_max_length = pipeline.tokenizer.model_max_length


def tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """All that decides what tokens a prompt becomes, and nothing that earlier calls left behind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = sorted(tokenizer.get_vocab().items()) if backend is None else _content(tokenizer)
    names = ("model_max_length", "padding_side", "truncation_side")
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    return {"words": words, "special": special} | {name: getattr(tokenizer, name, None) for name in names}


def _content(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in content.items() if key not in STATE}


def _check_probes(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if len({tuple(tokenizer(text).input_ids) for text in PROBES}) == 1:
        raise ValueError(
            f"the pipeline's {name} makes the same tokens of {', '.join(PROBES)}: its vocabulary "
            f"({len(tokenizer.get_vocab())} entries) is incomplete, bring its files anew."
        )


def _check_rows(name: str, tokenizer: PreTrainedTokenizerBase, encoder: nn.Module) -> None:
    """As many tokens as the text encoder has embeddings, but for rows that pad."""
    vocabulary, rows = tokenizer.get_vocab(), encoder.get_input_embeddings().num_embeddings
    largest = max(vocabulary.values())
    if largest >= rows:
        raise ValueError(
            f"the pipeline's {name} has tokens up to {largest}, its text encoder knows {rows}: they do not belong "
            "together."
        )
    if rows - len(vocabulary) > min(PADDED_ROWS, 0.1 * rows):
        raise ValueError(
            f"the vocabulary of the pipeline's {name} has {len(vocabulary)} entries, its text encoder knows {rows}: "
            "tokenizer.json, or vocab.json, is incomplete or of another checkpoint; bring its files anew."
        )


def _check_length(name: str, tokenizer: PreTrainedTokenizerBase, encoder: nn.Module) -> None:
    positions = _positions(encoder)
    if positions is not None and tokenizer.model_max_length > positions:
        raise ValueError(
            f"model_max_length={tokenizer.model_max_length:g} of the pipeline's {name} is more than its text encoder "
            f"has positions (max_position_embeddings={positions}): set pipe.{name}.model_max_length = {positions}."
        )


def _positions(encoder: nn.Module | None) -> int | None:
    """How many tokens a text encoder takes; None where any number, as T5's."""
    return getattr(getattr(encoder, "config", None), "max_position_embeddings", None)


def _check_merges(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Of byte pairs, each token of two characters or more is what some merge makes."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return
    content = _content(tokenizer)
    model = content["model"]
    if model.get("type") != "BPE" or model.get("ignore_merges"):
        return
    suffix, added = model.get("end_of_word_suffix") or "", {token["content"] for token in content["added_tokens"]}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    prefix = len(model.get("continuing_subword_prefix") or "")
    made = {left + right[prefix:] for left, right in pairs}
    tokens = [token for token in model["vocab"] if token not in added and len(token.removesuffix(suffix)) > 1]
    lost = [token for token in tokens if token not in made]
    if len(lost) > UNREACHED * len(model["vocab"]):
        raise ValueError(
            f"the pipeline's {name} has merges for {len(tokens) - len(lost)} of the {len(tokens)} longer tokens of its "
            f"vocabulary, none for {lost[-1]!r}: merges.txt, or the merges in tokenizer.json, are incomplete; bring "
            "its files anew."
        )


def _check_words(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whole words of the vocabulary are single tokens; a tokenizer whose parts do not fit together spells them."""
    matches = (re.fullmatch(r"([a-z]{2,})</w>|\u2581([a-z]{2,})", token) for token in sorted(tokenizer.get_vocab()))
    words = [match[1] or match[2] for match in matches if match]
    tried = words[:: max(1, len(words) // WORDS)]
    encoded = tokenizer(tried, add_special_tokens=False).input_ids if tried else []
    spelled = [word for word, tokens in zip(tried, encoded, strict=True) if len(tokens) > 1]
    if len(spelled) > (1 - WHOLE) * len(tried):
        raise ValueError(
            f"the pipeline's {name} takes {len(spelled)} of {len(tried)} whole words of its own vocabulary apart, such "
            f"as {spelled[0]!r}: its merges or settings are incomplete; bring its files anew."
        )
