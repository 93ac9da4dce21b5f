"""Prompt-to-Prompt for UNets (Hertz et al. 2022, https://arxiv.org/abs/2208.01626)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor

from rnri.models.attention.blend import WordMaps, blend_latents
from rnri.models.attention.editor import AttentionControl, AttentionEditor
from rnri.models.attention.operators import (
    attention,
    attention_weights,
    inject_attention_maps,
    inject_cross_attention,
    split_heads,
)
from rnri.models.attention.state import EditState
from rnri.models.attention.token_alignment import Prompt, align
from rnri.validation import NonEmptyStr, OpenUnitInterval, UnitInterval, dataclass

Weight = Annotated[float, Ge(-100), Le(100)]


@dataclass(frozen=True)
class PromptToPrompt:
    """Settings of Prompt-to-Prompt: in which sampling steps, and for which words, an edit uses the source's attention.

    All fractions of steps are fractions of the number of sampling steps, starting with the first step.

    Attributes:
        cross: fraction of the steps in which a token of the edit uses the cross-attention of its aligned source token.
        self_attention: fraction of the steps in which an edit uses the self-attention maps of its source.
        substitutes: if True, a word that replaces a source word uses the attention of the source word, as unchanged
            words do (replacement); if False, the new word uses its own attention (refinement).
        weights: maps words of the edited prompt to the factor by which their attention is multiplied in all steps
            (reweighting).
        schedules: maps words of the edited prompt to the fraction of steps that replaces ``cross`` for these words.
        blend: words of the source or the edited prompt; the edit may change only the image region of these words. Empty
            means that the whole image may change.
        blend_from: fraction of the steps without blending; after these steps the latents are blended.
        blend_threshold: a pixel belongs to the region of a word if its attention is at least this fraction of the
            maximum of the word's attention map.
    """

    cross: UnitInterval = 0.4
    self_attention: UnitInterval = 0.4
    substitutes: bool = True
    weights: Mapping[NonEmptyStr, Weight] = field(default_factory=dict)
    schedules: Mapping[NonEmptyStr, UnitInterval] = field(default_factory=dict)
    blend: Sequence[NonEmptyStr] = ()
    blend_from: UnitInterval = 0.2
    blend_threshold: OpenUnitInterval = 0.3

    def tables(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> AttentionTables:
        """Return the attention tables of the edits ``pairs``; each pair is a source prompt and an edited prompt.

        Raises:
            ValueError: no edited prompt contains a word of ``weights`` or ``schedules``.
        """
        for name in ("weights", "schedules"):
            for word in getattr(self, name):
                _check_word(name, word, [target for _, target in pairs])
        alignments = [align(source, target, substitutes=self.substitutes) for source, target in pairs]
        return AttentionTables(
            transfer=torch.stack([alignment.transfer for alignment in alignments]),
            inherited=torch.stack([alignment.inherited for alignment in alignments]),
            shares=torch.stack([_token_values(target, self.schedules, self.cross) for _, target in pairs]),
            weights=torch.stack([_token_values(target, self.weights, 1.0) for _, target in pairs]),
        )

    def blend_tokens(self, pairs: Sequence[tuple[Prompt, Prompt]], prompts: Sequence[Prompt]) -> Tensor:
        """Return the mask ``[R,T]`` of the tokens of R ``prompts`` that belong to words in ``blend``: 1 or 0 per token.

        Raises:
            ValueError: neither the source nor the edited prompt of a pair contains a word of ``blend``.
        """
        for word in self.blend:
            _check_word("blend", word, prompts)
        for source, target in pairs:
            if not any(prompt.has(word) for prompt in (source, target) for word in self.blend):
                raise ValueError(
                    f"neither {source.text!r} nor {target.text!r} contains one of blend={list(self.blend)}: name the "
                    "words whose region may change."
                )
        return torch.stack([_token_values(prompt, dict.fromkeys(self.blend, 1.0), 0.0) for prompt in prompts])


def _check_word(option: str, word: str, prompts: Sequence[Prompt]) -> None:
    if not any(prompt.has(word) for prompt in prompts):
        texts = ", ".join(dict.fromkeys(repr(prompt.text) for prompt in prompts))
        raise ValueError(f"{option} names {word!r}, which does not occur in {texts}: name a word of the prompt.")


def _token_values(prompt: Prompt, words: Mapping[str, float], default: float) -> Tensor:
    """Return one value per token, float64 ``[T]``: the value of the token's word in ``words``, or ``default``."""
    values = torch.full((prompt.length,), default, dtype=torch.float64)
    for word, value in words.items():
        if prompt.has(word):
            values[prompt.tokens(word)] = value
    return values


class AttentionTables:
    """Values per token that determine the cross-attention of E edits; all tables are float64.

    Args:
        transfer: fraction of each source token's attention that each token of the edit uses, ``[E,T,T]``.
        inherited: 1 for tokens of the edit that use the source's attention, otherwise 0, ``[E,T]``.
        shares: fraction of the sampling steps in which each token uses the source's attention, ``[E,T]``.
        weights: factor by which the attention to each token is multiplied, ``[E,T]``.
    """

    def __init__(self, transfer: Tensor, inherited: Tensor, shares: Tensor, weights: Tensor) -> None:
        self.transfer = transfer
        self.inherited = inherited
        self.shares = shares
        self.weights = weights
        self._cache_key: object = None
        self._cache: dict[str, Tensor] = {}

    def at_progress(self, progress: float, like: Tensor) -> dict[str, Tensor]:
        """Return the table arguments of ``inject_cross_attention`` after the fraction ``progress`` of the steps.

        The result is empty if the tables do not change the attention. The tables are converted to the device and dtype
        of ``like`` once per sampling step, not once per layer.
        """
        key = (progress, like.device, like.dtype)
        if self._cache_key != key:
            inherited = self.inherited * (progress < self.shares)
            tables = {"transfer": self.transfer, "inherited": inherited, "weights": self.weights}
            has_effect = bool(inherited.any() or (self.weights != 1).any())
            self._cache_key = key
            self._cache = {name: table.to(like) for name, table in tables.items()} if has_effect else {}
        return self._cache


class PromptToPromptProcessor:
    """Attention processor of Prompt-to-Prompt for UNets; without edits it computes the same as ``AttnProcessor2_0``.

    Args:
        state: state of the edit, which all layers share.
        tables: attention tables of the edits.
        self_attention: fraction of the steps in which edits use the self-attention maps of their source.
        maps: sums the attention to the words of the blend; None without a blend.
    """

    def __init__(self, state: EditState, tables: AttentionTables, self_attention: float, maps: WordMaps | None) -> None:
        self.state = state
        self.tables = tables
        self.self_attention = self_attention
        self.maps = maps

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        residual = hidden_states
        is_cross_attention = encoder_hidden_states is not None
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)

        input_shape = hidden_states.shape
        if len(input_shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

        if encoder_hidden_states is None:
            encoder_hidden_states = hidden_states
        elif attn.norm_cross:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
        if attention_mask is not None:
            attention_mask = _mask_per_head(attn, attention_mask, encoder_hidden_states)

        query = split_heads(attn.heads, attn.to_q(hidden_states))
        key = split_heads(attn.heads, attn.to_k(encoder_hidden_states))
        value = split_heads(attn.heads, attn.to_v(encoder_hidden_states))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)

        if is_cross_attention:
            hidden_states = self._cross_attention(query, key, value, attention_mask)
        else:
            hidden_states = self._self_attention(query, key, value, attention_mask)
        hidden_states = hidden_states.transpose(1, 2).flatten(2).to(query.dtype)

        hidden_states = attn.to_out[0](hidden_states)  # linear projection
        hidden_states = attn.to_out[1](hidden_states)  # dropout
        if len(input_shape) == 4:
            hidden_states = hidden_states.transpose(1, 2).reshape(input_shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor

    def _self_attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        edits, sources = self.state.rows(len(query), query.device)
        if self.state.progress < self.self_attention:
            return inject_attention_maps(query, key, value, edits, sources, mask)
        return attention(query, key, value, mask)

    def _cross_attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        edits, sources = self.state.rows(len(query), query.device)
        if self.maps is not None:
            conditional = slice(-self.state.count, None)
            conditional_mask = None if mask is None else mask[conditional]
            self.maps.add(attention_weights(query[conditional], key[conditional], self.maps.words, conditional_mask))
        tables = self.tables.at_progress(self.state.progress, value)
        if not tables:
            return attention(query, key, value, mask)
        return inject_cross_attention(query, key, value, edits, sources, mask=mask, **tables)


class PromptToPromptEditor(AttentionEditor):
    """Applies Prompt-to-Prompt to the cross-attention and self-attention layers of a pipeline's UNet."""

    config_class: ClassVar = PromptToPrompt

    def __init__(self, pipeline: DiffusionPipeline, pixels_per_latent: int) -> None:
        self.pipeline = pipeline
        self.pixels_per_latent = pixels_per_latent

    def control(
        self, config: PromptToPrompt, state: EditState, prompts: Sequence[str], image_size: tuple[int, int]
    ) -> AttentionControl:
        tokenizer = self.pipeline.tokenizer or self.pipeline.tokenizer_2
        tokenized = [
            Prompt.tokenize(self.pipeline.maybe_convert_prompt(text, tokenizer), tokenizer) for text in prompts
        ]
        rows = zip(state.sources.tolist(), state.edits.tolist(), strict=True)
        pairs = [(tokenized[source], tokenized[edit]) for source, edit in rows]
        tables = config.tables(pairs)
        if not config.blend:
            return AttentionControl(PromptToPromptProcessor(state, tables, config.self_attention, None))

        height, width = image_size
        latent_size = (height // self.pixels_per_latent, width // self.pixels_per_latent)
        maps = WordMaps(config.blend_tokens(pairs, tokenized), latent_size)

        def blend(latents: Tensor) -> Tensor:
            if state.progress < config.blend_from:
                return latents
            region = maps.region(config.blend_threshold)
            return blend_latents(latents, region, *state.rows(len(latents), latents.device))

        return AttentionControl(PromptToPromptProcessor(state, tables, config.self_attention, maps), blend)


def _mask_per_head(attn: Attention, mask: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """Return the attention ``mask`` of a UNet layer, reshaped to ``[B,heads,1 or P,S]``."""
    batch_size, length = encoder_hidden_states.shape[:2]
    mask = attn.prepare_attention_mask(mask, length, batch_size)
    return mask.view(batch_size, attn.heads, -1, mask.shape[-1])
