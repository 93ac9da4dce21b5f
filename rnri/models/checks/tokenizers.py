"""Checks that each tokenizer of a pipeline is complete and fits its text encoder; reads the settings of tokenizers."""

from __future__ import annotations

from diffusers import DiffusionPipeline
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rnri.loading import backend_content, check_merges, check_vocabulary
from rnri.models.checks.folder import TOKENIZER_PREFIXES


def check_tokenizers(pipeline: DiffusionPipeline) -> None:
    """Raise ValueError if a tokenizer's vocabulary is incomplete or belongs to another text encoder."""
    for name, tokenizer in tokenizers(pipeline).items():
        encoder = _text_encoder(pipeline, name)
        if encoder is not None:
            embeddings = encoder.get_input_embeddings().num_embeddings
            check_vocabulary(f"the pipeline's {name}", tokenizer, embeddings)
            _check_length(name, tokenizer, encoder)
        check_merges(f"the pipeline's {name}", tokenizer)


def limit_prompt_lengths(pipeline: DiffusionPipeline) -> None:
    """Limit each tokenizer's ``model_max_length`` to the maximum number of tokens of its text encoder.

    Without this limit, a tokenizer whose config has no ``model_max_length`` would pad prompts to 1e30 tokens.
    """
    for name, tokenizer in tokenizers(pipeline).items():
        positions = _positions(_text_encoder(pipeline, name))
        if positions is not None and tokenizer.model_max_length > positions:
            tokenizer.model_max_length = positions
            if name == "tokenizer" and getattr(pipeline, "tokenizer_max_length", 0) > positions:
                pipeline.tokenizer_max_length = positions  # some pipelines store the maximum separately


def tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """Return all settings of a tokenizer that determine the tokens of a prompt, for the fingerprint."""
    has_backend = getattr(tokenizer, "backend_tokenizer", None) is not None
    words = backend_content(tokenizer) if has_backend else sorted(tokenizer.get_vocab().items())
    names = ("model_max_length", "padding_side", "truncation_side")
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    template = getattr(tokenizer, "chat_template", None)
    settings: dict[str, object] = {} if template is None else {"chat_template": template}
    return settings | {"words": words, "special": special} | {name: getattr(tokenizer, name, None) for name in names}


def tokenizers(pipeline: DiffusionPipeline) -> dict[str, PreTrainedTokenizerBase]:
    """Return the tokenizers of a pipeline by the name of their component, including tokenizers in processors."""
    return {
        name: getattr(value, "tokenizer", value)
        for name, value in pipeline.components.items()
        if name.startswith(TOKENIZER_PREFIXES) and value is not None
    }


def _text_encoder(pipeline: DiffusionPipeline, tokenizer_name: str) -> PreTrainedModel | None:
    name = tokenizer_name.replace("processor", "tokenizer").replace("tokenizer", "text_encoder")
    return getattr(pipeline, name, None)


def _positions(encoder: PreTrainedModel | None) -> int | None:
    """Return the number of position embeddings of a text encoder.

    The function returns None for text encoders without position embeddings, such as T5 and text encoders with rotary
    position embeddings. The pipelines of such text encoders limit the number of tokens.
    """
    config = getattr(encoder, "config", None)
    if getattr(config, "rope_parameters", None) is not None:
        return None
    return getattr(config, "max_position_embeddings", None)


def _check_length(name: str, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel) -> None:
    positions = _positions(encoder)
    if positions is not None and tokenizer.model_max_length > positions:
        raise ValueError(
            f"model_max_length={tokenizer.model_max_length:g} of the pipeline's {name} exceeds the number of positions "
            f"of its text encoder (max_position_embeddings={positions}): set pipe.{name}.model_max_length = "
            f"{positions}."
        )
