"""Prompt-to-Prompt for UNets (Hertz et al. 2022, https://arxiv.org/abs/2208.01626)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated

import torch
from annotated_types import Ge, Le
from diffusers.models.attention_processor import Attention
from torch import Tensor

from rnri.editing.blend import WordMaps
from rnri.editing.operators import attention, attention_weights, inject_attention_maps, inject_cross_attention
from rnri.editing.state import EditState
from rnri.editing.token_alignment import Prompt, align
from rnri.validation import NonEmptyStr, OpenUnitInterval, UnitInterval, dataclass

Weight = Annotated[float, Ge(-100), Le(100)]


@dataclass(frozen=True)
class PromptToPrompt:
    """How much of the source's attention an edit takes over. Shares are of the sampler's steps, from the first on.

    Attributes:
        cross: for what share a token takes over the attention that the source pays to the token it stands for.
        self_attention: for what share the source's attention among pixels is taken over.
        substitutes: whether a word that stands for another takes over its attention, as equal words do
            (replacement), or keeps its own (refinement).
        weights: words of the edited prompt and what their attention is multiplied with, at every step (reweighting).
        schedules: words of the edited prompt that have a share of their own instead of ``cross``.
        blend: words whose region may change, in the source or in the edit; none stands for the whole image.
        blend_from: the share of the steps after which latents are blended.
        blend_threshold: of the largest value of a word's map: what is above it belongs to the region.
    """

    cross: UnitInterval = 0.4
    self_attention: UnitInterval = 0.4
    substitutes: bool = True
    weights: Mapping[NonEmptyStr, Weight] = field(default_factory=dict)
    schedules: Mapping[NonEmptyStr, UnitInterval] = field(default_factory=dict)
    blend: Sequence[NonEmptyStr] = ()
    blend_from: UnitInterval = 0.2
    blend_threshold: OpenUnitInterval = 0.3

    def words(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> AttentionTables:
        """The tables of edits, each a source's prompt and the edited one.

        Raises:
            ValueError: one sentence, for a word that no prompt has.
        """
        self._check_words(pairs)
        alignments = [align(source, target, substitutes=self.substitutes) for source, target in pairs]
        return AttentionTables(
            transfer=torch.stack([alignment.transfer for alignment in alignments]),
            inherited=torch.stack([alignment.inherited for alignment in alignments]),
            shares=torch.stack([_marked(target, self.schedules, self.cross) for _, target in pairs]),
            weights=torch.stack([_marked(target, self.weights, 1.0) for _, target in pairs]),
        )

    def blend_words(self, pairs: Sequence[tuple[Prompt, Prompt]], prompts: Sequence[Prompt]) -> Tensor:
        """Which tokens of ``prompts`` belong to the words of the blend, ``[R,T]``."""
        for source, target in pairs:
            if not any(prompt.has(word) for prompt in (source, target) for word in self.blend):
                raise ValueError(
                    f"neither {source.text!r} nor {target.text!r} has one of blend={list(self.blend)}: name the words "
                    "whose region may change."
                )
        return torch.stack([_marked(prompt, dict.fromkeys(self.blend, 1.0), 0.0) for prompt in prompts])

    def _check_words(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> None:
        for name in ("weights", "schedules"):
            for word in getattr(self, name):
                _check_word(name, word, [target for _, target in pairs])
        for word in self.blend:
            _check_word("blend", word, [prompt for pair in pairs for prompt in pair])


def _check_word(name: str, word: str, prompts: Sequence[Prompt]) -> None:
    if not any(prompt.has(word) for prompt in prompts):
        texts = ", ".join(dict.fromkeys(repr(prompt.text) for prompt in prompts))
        raise ValueError(f"{name} names {word!r}, which stands in none of {texts}: name words that do.")


def _marked(prompt: Prompt, words: Mapping[str, float], otherwise: float) -> Tensor:
    """A number for each token, float64 ``[T]``: what ``words`` says of it, or ``otherwise``."""
    marks = torch.full((prompt.length,), otherwise, dtype=torch.float64)
    for word, number in words.items():
        if prompt.has(word):
            marks[prompt.tokens(word)] = number
    return marks


class AttentionTables:
    """The edits' tables: ``transfer [E,T,T]``, and ``inherited``, ``shares``, ``weights`` ``[E,T]``, all float64."""

    def __init__(self, transfer: Tensor, inherited: Tensor, shares: Tensor, weights: Tensor) -> None:
        self.transfer, self.inherited, self.shares, self.weights = transfer, inherited, shares, weights
        self._made: tuple[object, dict[str, Tensor]] = None, {}

    def at(self, progress: float, like: Tensor) -> dict[str, Tensor]:
        """What ``inject_cross_attention`` takes at a share of the steps; empty where nothing is to be done any more.

        They are moved to the device of ``like`` once a step, not once a layer.
        """
        key = (progress, like.device, like.dtype)
        if self._made[0] != key:
            inherited = self.inherited * (progress < self.shares)
            tables = {"transfer": self.transfer, "inherited": inherited, "weights": self.weights}
            acts = bool(inherited.any() or (self.weights != 1).any())
            self._made = key, {name: table.to(like) for name, table in tables.items()} if acts else {}
        return self._made[1]


class PromptToPromptProcessor:
    """One UNet layer's attention under Prompt-to-Prompt; otherwise diffusers' ``AttnProcessor2_0``.

    Args:
        state: shared by all layers.
        words: the edits' tables.
        self_attention: the share of the steps in which edits have their source's maps among pixels.
        maps: gathers the attention to the words of the blend, if there is one.
    """

    def __init__(self, state: EditState, words: AttentionTables, self_attention: float, maps: WordMaps | None) -> None:
        self.state, self.words, self.self_attention, self.maps = state, words, self_attention, maps

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        mask = _mask(attn, attention_mask, context)
        query, key, value = (
            project(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project, tokens in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        attend = self._among_pixels if encoder_hidden_states is None else self._to_words
        result = attend(query, key, value, mask).transpose(1, 2).flatten(2).to(query.dtype)
        result = attn.to_out[1](attn.to_out[0](result))
        if len(shape) == 4:
            result = result.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            result = result + residual
        return result / attn.rescale_output_factor

    def _among_pixels(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        edits, sources = self.state.rows(len(query), query.device)
        if self.state.progress < self.self_attention:
            return inject_attention_maps(query, key, value, edits, sources, mask)
        return attention(query, key, value, mask)

    def _to_words(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        edits, sources = self.state.rows(len(query), query.device)
        if self.maps is not None:
            rows = slice(-self.state.count, None)
            self.maps.add(
                attention_weights(query[rows], key[rows], self.maps.words, mask if mask is None else mask[rows])
            )
        tables = self.words.at(self.state.progress, value)
        if not tables:
            return attention(query, key, value, mask)
        return inject_cross_attention(query, key, value, edits, sources, mask=mask, **tables)


def _mask(attn: Attention, mask: Tensor | None, context: Tensor) -> Tensor | None:
    """``[B,heads,1 or P,S]`` of the mask that the network gives to its layers."""
    if mask is None:
        return None
    batch, length = context.shape[:2]
    mask = attn.prepare_attention_mask(mask, length, batch)
    return mask.view(batch, attn.heads, -1, mask.shape[-1])
