"""Prompt-to-Prompt for UNets (Hertz et al. 2022, https://arxiv.org/abs/2208.01626).

The rounding of step numbers, the word weights, the padding and the local blend follow the authors' code
(https://github.com/google/prompt-to-prompt).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le, Lt
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention
from pydantic import BeforeValidator
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
from rnri.validation import ConfigError, NonEmptyStr, OpenUnitInterval, UnitInterval, dataclass

Weight = Annotated[float, Ge(-100), Le(100)]


def _check_share(share: Any) -> Any:
    bounds = share if isinstance(share, list | tuple) else (0, share)
    numbers = [bound for bound in bounds if isinstance(bound, float | int) and not isinstance(bound, bool)]
    if len(bounds) != 2 or len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= 1:
        raise ValueError("must be a number in [0, 1], or [start, end] with 0 <= start <= end <= 1")
    return share


Share = Annotated[UnitInterval | Sequence[UnitInterval], BeforeValidator(_check_share)]
"""An interval of the sampling steps: the fraction of the steps at which it ends, or the fractions ``[start, end]``."""


def bounds_of(share: Share) -> tuple[float, float]:
    """Return the fractions of the sampling steps at which the interval ``share`` starts and ends."""
    if isinstance(share, float | int):
        return 0.0, float(share)
    start, end = share
    return start, end


@dataclass(frozen=True)
class PromptToPrompt:
    """Settings of Prompt-to-Prompt: in which steps and for which words an edit uses the attention of its source image.

    An interval of the sampling steps is a fraction ``end`` or a pair ``[start, end]`` of fractions. A fraction is
    rounded down to a number of steps, as in the authors' code. Step ``k = 0, ..., N - 1`` of ``N`` sampling steps
    belongs to the interval ``self_attention`` if ``int(start * N) <= k < int(end * N)``. Step ``k`` belongs to an
    interval of ``cross`` or ``schedules`` if ``int(start * (N + 1)) <= k < int(end * (N + 1))``.

    Attributes:
        cross: interval of the steps in which a token of the edited prompt uses the cross-attention of the token of the
            source prompt with which it is aligned.
        self_attention: interval of the steps in which an edited image uses the self-attention maps of its source image.
        substitutes: if True, a new word that replaces a source word uses the attention of the source word
            (replacement); if False, the new word uses its own attention (refinement).
        weights: maps words of the edited prompt to the factor by which their attention is multiplied (reweighting). The
            weight of a word applies in the steps of the word's entry in ``schedules``, or in the steps of ``cross`` if
            the word has no entry.
        schedules: maps words of the edited prompt to an interval of the steps that replaces ``cross`` for these words.
        blend: words of the source or the edited prompt; the edit may change only the image region of these words. If
            ``blend`` is empty, the whole image may change.
        blend_subtract: words of the source or the edited prompt; their image region is removed from the region that
            the edit may change.
        blend_from: fraction of the sampling steps at which blending starts. With ``N`` sampling steps, the latents are
            blended after every step except the first ``int(blend_from * N)`` steps.
        blend_threshold: a pixel belongs to the region of a word if the attention of the pixel to the word is greater
            than this fraction of the maximum of the word's attention map.
    """

    cross: Share = 0.4
    self_attention: Share = 0.4
    substitutes: bool = True
    weights: Mapping[NonEmptyStr, Weight] = field(default_factory=dict)
    schedules: Mapping[NonEmptyStr, Share] = field(default_factory=dict)
    blend: Sequence[NonEmptyStr] = ()
    blend_subtract: Sequence[NonEmptyStr] = ()
    blend_from: Annotated[float, Ge(0), Lt(1)] = 0.2
    blend_threshold: OpenUnitInterval = 0.3

    def __post_init__(self) -> None:
        if self.blend_subtract and not self.blend:
            raise ConfigError(
                "blend_subtract", f"needs words in blend, got {list(self.blend_subtract)} and an empty blend."
            )

    def tables(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> AttentionTables:
        """Return the attention tables that apply these settings to E edits.

        Args:
            pairs: E pairs of a source prompt and an edited prompt.

        Raises:
            ValueError: no edited prompt contains a word of ``weights`` or ``schedules``, or a weight has no effect,
                because the word's interval of cross-attention contains no step.
        """
        for name in ("weights", "schedules"):
            for word in getattr(self, name):
                _check_word(name, word, [target for _, target in pairs])
        alignments = [align(source, target, substitutes=self.substitutes) for source, target in pairs]
        starts = self._share_bounds(pairs, 0)
        ends = self._share_bounds(pairs, 1)
        for word in self.weights:
            in_word = torch.stack([_token_values(target, {word: 1.0}, 0.0) for _, target in pairs])
            if not ((starts < ends) & (in_word > 0)).any():
                raise ValueError(
                    f"weights names {word!r}, whose weight is applied in no step: set cross, or the entry of this "
                    "word in schedules, to a number above 0."
                )
        return AttentionTables(
            transfer=torch.stack([alignment.transfer for alignment in alignments]),
            inherited=torch.stack([alignment.inherited for alignment in alignments]),
            starts=starts,
            ends=ends,
            weights=torch.stack([_token_values(target, self.weights, 1.0) for _, target in pairs]),
        )

    def _share_bounds(self, pairs: Sequence[tuple[Prompt, Prompt]], side: int) -> Tensor:
        """Return the start (``side=0``) or end (``side=1``) of each token's interval of cross-attention, ``[E,T]``.

        The intervals are fractions of the sampling steps, for the T tokens of the edited prompts of E edits.
        """
        by_word = {word: bounds_of(share)[side] for word, share in self.schedules.items()}
        default = bounds_of(self.cross)[side]
        return torch.stack([_token_values(target, by_word, default) for _, target in pairs])

    def blend_tokens(self, pairs: Sequence[tuple[Prompt, Prompt]], prompts: Sequence[Prompt]) -> Tensor:
        """Return K masks of the T tokens of R prompts, ``[R,K,T]``: 1 for tokens of selected words, otherwise 0.

        The first mask is for the words in ``blend``. If ``blend_subtract`` is not empty, the second mask is for the
        words in ``blend_subtract``.

        Raises:
            ValueError: no prompt contains a word of ``blend`` or ``blend_subtract``, or neither the source nor the
                edited prompt of a pair contains a word of ``blend``.
        """
        for name in ("blend", "blend_subtract"):
            for word in getattr(self, name):
                _check_word(name, word, prompts)
        for source, target in pairs:
            if not any(prompt.has(word) for prompt in (source, target) for word in self.blend):
                raise ValueError(
                    f"neither {source.text!r} nor {target.text!r} contains one of blend={list(self.blend)}: add a "
                    "word whose image region may change to blend."
                )
        sets = [words for words in (self.blend, self.blend_subtract) if words]
        masks = [[_token_values(prompt, dict.fromkeys(words, 1.0), 0.0) for words in sets] for prompt in prompts]
        return torch.stack([torch.stack(each) for each in masks])


def _check_word(option: str, word: str, prompts: Sequence[Prompt]) -> None:
    if not any(prompt.has(word) for prompt in prompts):
        texts = ", ".join(dict.fromkeys(repr(prompt.text) for prompt in prompts))
        raise ValueError(f"{option} names {word!r}, which does not occur in {texts}: use words of the prompt.")


def _token_values(prompt: Prompt, words: Mapping[str, float], default: float) -> Tensor:
    """Return one value for each of the T tokens of ``prompt``, float64 ``[T]``.

    ``words`` maps words to values. Tokens of other words have the value ``default``.
    """
    values = torch.full((prompt.length,), default, dtype=torch.float64)
    for word, value in words.items():
        if prompt.has(word):
            values[prompt.tokens(word)] = value
    return values


class AttentionTables:
    """Values per token that determine the cross-attention of E edits, whose prompts have T tokens; all are float64.

    Args:
        transfer: fraction of the attention to each source token that each token of the edited prompt uses, ``[E,T,T]``.
        inherited: 1 for tokens of the edited prompt that use the attention of source tokens, otherwise 0, ``[E,T]``.
        starts, ends: fractions of the sampling steps at which each token's interval of cross-attention starts and ends,
            ``[E,T]``. Outside of its interval, a token uses its own attention with the factor 1.
        weights: factor by which the attention to each token is multiplied, ``[E,T]``.
    """

    def __init__(self, *, transfer: Tensor, inherited: Tensor, starts: Tensor, ends: Tensor, weights: Tensor) -> None:
        self.transfer = transfer
        self.inherited = inherited
        self.starts = starts
        self.ends = ends
        self.weights = weights
        self._cache_key: object = None
        self._cache: dict[str, Tensor] = {}

    def at_step(self, step: int, steps: int, like: Tensor) -> dict[str, Tensor]:
        """Return the arguments ``transfer``, ``inherited`` and ``weights`` of ``inject_cross_attention`` in one step.

        ``step`` is the index of the sampling step, from 0 to ``steps - 1``. The result is empty if the tables do not
        change the attention in this step. The tables are converted to the device and dtype of ``like`` once per
        sampling step, not once per layer.
        """
        key = (step, steps, like.device, like.dtype)
        if self._cache_key != key:
            levels = steps + 1  # the authors' tables have one entry per noise level
            active = ((self.starts * levels).floor() <= step) & (step < (self.ends * levels).floor())
            inherited = self.inherited * active
            weights = torch.where(active, self.weights, 1.0)
            tables = {"transfer": self.transfer, "inherited": inherited, "weights": weights}
            has_effect = bool(inherited.any() or (weights != 1).any())
            self._cache_key = key
            self._cache = {name: table.to(like) for name, table in tables.items()} if has_effect else {}
        return self._cache


class PromptToPromptProcessor:
    """Attention processor of Prompt-to-Prompt for UNets; without edits its output equals that of ``AttnProcessor2_0``.

    Args:
        state: state of the edit, which all layers share.
        tables: attention tables of the edits.
        self_attention: interval of the steps in which edited images use the self-attention maps of their source images:
            the fraction of the sampling steps at which the interval ends, or the fractions ``[start, end]``.
        maps: object that sums the attention to the words of a local blend; None if there is no local blend.
    """

    def __init__(self, state: EditState, tables: AttentionTables, self_attention: Share, maps: WordMaps | None) -> None:
        self.state = state
        self.tables = tables
        self.self_attention = bounds_of(self_attention)
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
        start, end = (int(fraction * self.state.steps) for fraction in self.self_attention)
        if start <= self.state.step < end:
            return inject_attention_maps(query, key, value, edits, sources=sources, mask=mask)
        return attention(query, key, value, mask)

    def _cross_attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        edits, sources = self.state.rows(len(query), query.device)
        if self.maps is not None:
            conditional = slice(-self.state.count, None)
            conditional_mask = None if mask is None else mask[conditional]
            self.maps.add(attention_weights(query[conditional], key[conditional], self.maps.words, conditional_mask))
        tables = self.tables.at_step(self.state.step, self.state.steps, value)
        if not tables:
            return attention(query, key, value, mask)
        return inject_cross_attention(query, key, value, edits, sources=sources, mask=mask, **tables)


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
            if state.step <= int(config.blend_from * state.steps):  # state.step is the number of finished steps
                return latents
            edits, sources = state.rows(len(latents), latents.device)
            return blend_latents(latents, maps, config.blend_threshold, edits, sources=sources)

        return AttentionControl(PromptToPromptProcessor(state, tables, config.self_attention, maps), blend)


def _mask_per_head(attn: Attention, mask: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """Return the attention ``mask`` of a UNet layer, reshaped to ``[B,heads,1 or P,S]`` for P queries and S keys."""
    batch_size, length = encoder_hidden_states.shape[:2]
    mask = attn.prepare_attention_mask(mask, length, batch_size)
    return mask.view(batch_size, attn.heads, -1, mask.shape[-1])
