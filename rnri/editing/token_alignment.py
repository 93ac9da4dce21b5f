"""Which tokens of an edited prompt stand for which of the source's: words are found by the tokenizer's offsets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

WORD = re.compile(r"\w+|[^\w\s]")


class Word(NamedTuple):
    text: str  # casefolded
    tokens: list[int]  # their places among the encoder's


@dataclass(frozen=True)
class Prompt:
    """A prompt as its tokenizer cuts it for the text encoder, ends and padding included.

    Attributes:
        spans: characters ``(start, end)`` of ``text``, for each of its own tokens.
        first: the place of the first of them; what stands before are marks of the beginning.
        length: tokens in all, padding included.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    first: int
    length: int

    @classmethod
    def tokenize(cls, text: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """ValueError for a tokenizer without offsets (a slow one)."""
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} says no offsets, so words cannot be aligned: give the pipeline the fast "
                "tokenizer of the same vocabulary."
            )
        length = tokenizer.model_max_length
        encoded = tokenizer(
            text,
            padding="max_length",
            truncation=True,
            max_length=length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        own = [k for k, special in enumerate(encoded["special_tokens_mask"]) if not special]
        first = own[0] if own else len(tokenizer("")["input_ids"]) - 1
        return cls(text, tuple(encoded["offset_mapping"][k] for k in own), first, length)

    @property
    def end(self) -> int:
        """The place of the mark of the end; padding follows it."""
        return self.first + len(self.spans)

    def words(self) -> list[Word]:
        """The words and signs that the encoder reads, in order; what one token spans is one word."""
        pieces = [piece.span() for piece in WORD.finditer(self.text)]
        words: list[tuple[int, int, list[int]]] = []
        for place, span in enumerate(self.spans, start=self.first):
            touched = [piece for piece in pieces if _overlap(piece, span)] or [span]
            start, end = touched[0][0], touched[-1][1]
            if words and start < words[-1][1]:
                before = words.pop()
                words.append((before[0], max(end, before[1]), [*before[2], place]))
            else:
                words.append((start, end, [place]))
        return [Word(self.text[start:end].casefold(), tokens) for start, end, tokens in words]

    def has(self, phrase: str) -> bool:
        return bool(self._occurrences(phrase))

    def tokens(self, phrase: str) -> list[int]:
        """The places of all tokens of a word, or of several words in a row, wherever they stand in the prompt.

        Raises:
            ValueError: one sentence, where they do not stand in it, or beyond what the encoder reads.
        """
        found = self._occurrences(phrase)
        if not found:
            raise ValueError(f"the prompt {self.text!r} has no {phrase!r}: name words that stand in it.")
        tokens = [
            place
            for place, span in enumerate(self.spans, start=self.first)
            if any(_overlap(occurrence, span) for occurrence in found)
        ]
        if not tokens:
            raise ValueError(
                f"{phrase!r} stands beyond the {self.length} tokens that the text encoder reads of {self.text!r}: "
                "shorten the prompt."
            )
        return tokens

    def _occurrences(self, phrase: str) -> list[tuple[int, int]]:
        if not phrase.strip():
            return []
        pattern = r"\s+".join(re.escape(part) for part in phrase.split())
        return [found.span() for found in re.finditer(rf"(?<!\w){pattern}(?!\w)", self.text, re.IGNORECASE)]


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


@dataclass(frozen=True)
class Alignment:
    """What the tokens of an edited prompt take over from those of the source.

    Attributes:
        transfer: float64 ``[S,T]``; column ``t`` says what share of each source token's attention token ``t`` takes.
        inherited: float64 ``[T]``, 1 for a token that takes the source's attention, 0 for one that keeps its own.
    """

    transfer: Tensor  # [S,T]
    inherited: Tensor  # [T]


def align(source: Prompt, target: Prompt, *, substitutes: bool = True) -> Alignment:
    """Aligns two prompts of one tokenizer word by word.

    Equal words and the marks of beginning and end take over their own. A word that stands for another takes over its
    attention (Prompt-to-Prompt's replacement), or, without ``substitutes``, keeps its own (its refinement). Added words
    keep their own. Where ``n`` tokens stand for ``m`` others, each takes a share of ``1/n`` of the sum of the ``m``, so
    that no attention is lost. Padding keeps its place, for the encoder tells places apart; what more padding the source
    has is shared among the target's.
    """
    alignment = Alignment(
        torch.zeros(source.length, target.length, dtype=torch.float64), torch.zeros(target.length, dtype=torch.float64)
    )
    for taken, taking in _blocks(source, target, substitutes):
        share = torch.eye(len(taken)) if len(taken) == len(taking) else torch.full((len(taken), 1), 1 / len(taking))
        alignment.transfer[torch.tensor(taken)[:, None], torch.tensor(taking)] = share.double()
        alignment.inherited[taking] = 1
    _align_padding(source.end + 1, target.end + 1, alignment)
    return alignment


def _blocks(source: Prompt, target: Prompt, substitutes: bool) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens of the source and those of the target that stand for them."""
    yield from (([k], [k]) for k in range(min(source.first, target.first)))
    if source.end < source.length and target.end < target.length:
        yield [source.end], [target.end]
    mine, theirs = source.words(), target.words()
    matcher = SequenceMatcher(a=[word.text for word in mine], b=[word.text for word in theirs], autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal" or (kind == "replace" and substitutes and b - a == d - c):
            yield from ((one.tokens, other.tokens) for one, other in zip(mine[a:b], theirs[c:d], strict=True))
        elif kind == "replace" and substitutes:
            yield [k for word in mine[a:b] for k in word.tokens], [k for word in theirs[c:d] for k in word.tokens]


def _align_padding(begin: int, target_begin: int, alignment: Alignment) -> None:
    """From ``begin`` and ``target_begin`` on, the source's and the target's tokens are padding."""
    source_length, target_length = alignment.transfer.shape
    if begin >= source_length or target_begin >= target_length:
        return
    alignment.inherited[target_begin:] = 1
    common = range(max(begin, target_begin), target_length)
    alignment.transfer[common, common] = 1
    alignment.transfer[begin:target_begin, target_begin:] = 1 / (target_length - target_begin)
