"""Word-by-word alignment of the tokens of an edited prompt with the tokens of its source prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rnri.words import find_phrase

WORD = r"\w+|[^\w\s]"

Tokens = list[int]


class Word(NamedTuple):
    text: str  # the word in lower case (str.casefold)
    tokens: Tokens  # indices of the word's tokens in the text encoder's input


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt, including special tokens and padding.

    Attributes:
        text: the prompt as a string.
        spans: for each token that is not a special token, its character range ``(start, end)`` in ``text``.
        first: index of the first token that is not a special token; only start tokens come before this index.
        length: number of all tokens, including special tokens and padding.
        vectors: maps each word of ``text`` that a textual inversion encodes with several vectors to the text of its
            tokens, such as ``"<cat>"`` to ``"<cat> <cat>_1 <cat>_2"``. All tokens of a word with several vectors count
            as one word.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    first: int
    length: int
    vectors: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def tokenize(cls, text: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """Tokenize ``text`` in the same way as the pipeline does for the text encoder.

        Raises:
            ValueError: ``tokenizer`` is a slow tokenizer, which provides no character offsets.
        """
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} provides no character offsets, so words cannot be aligned: use the fast "
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
        tokens = [k for k, special in enumerate(encoded["special_tokens_mask"]) if not special]
        first = tokens[0] if tokens else len(tokenizer("")["input_ids"]) - 1
        spans = tuple(encoded["offset_mapping"][k] for k in tokens)
        names = tokenizer.convert_ids_to_tokens([encoded["input_ids"][k] for k in tokens])
        vectors: dict[str, str] = {}
        for start, last in _multi_vector_words(names, tokenizer.added_tokens_encoder):
            word = text[slice(*spans[start])]
            vectors.setdefault(word, text[spans[start][0] : spans[last][1]])
        return cls(text, spans, first, length, vectors)

    @property
    def end(self) -> int:
        """Index of the end token in the text encoder's input; the tokens after the end token are padding."""
        return self.first + len(self.spans)

    def words(self) -> list[Word]:
        """Return the words and punctuation marks that the text encoder reads; words that share a token are merged."""
        pattern = "|".join([*map(re.escape, self.vectors.values()), WORD])
        pieces = [piece.span() for piece in re.finditer(pattern, self.text)]
        words: list[tuple[int, int, Tokens]] = []
        for index, span in enumerate(self.spans, start=self.first):
            overlapping = [piece for piece in pieces if _overlap(piece, span)] or [span]
            start = overlapping[0][0]
            end = overlapping[-1][1]
            if words and start < words[-1][1]:
                previous_start, previous_end, tokens = words.pop()
                words.append((previous_start, max(end, previous_end), [*tokens, index]))
            else:
                words.append((start, end, [index]))
        return [Word(self.text[start:end].casefold(), tokens) for start, end, tokens in words]

    def has(self, phrase: str) -> bool:
        return bool(self._occurrences(phrase))

    def tokens(self, phrase: str) -> Tokens:
        """Return the indices of all tokens of a word or phrase; the phrase may occur several times in the prompt.

        Raises:
            ValueError: the prompt does not contain the phrase, or contains it only after the tokens that the text
                encoder reads.
        """
        occurrences = self._occurrences(phrase)
        if not occurrences:
            raise ValueError(f"the prompt {self.text!r} does not contain {phrase!r}: use words of the prompt.")
        tokens = [
            index
            for index, span in enumerate(self.spans, start=self.first)
            if any(_overlap(occurrence, span) for occurrence in occurrences)
        ]
        if not tokens:
            raise ValueError(
                f"{phrase!r} comes after the first {self.length} tokens of {self.text!r}, and the text encoder reads "
                "only these tokens: shorten the prompt."
            )
        return tokens

    def _occurrences(self, phrase: str) -> list[tuple[int, int]]:
        for word, all_tokens in self.vectors.items():
            first_token = rf"{re.escape(word)}(?!\w|\s+{re.escape(word)}_1)"
            phrase = re.sub(first_token, all_tokens.replace("\\", r"\\"), phrase, flags=re.IGNORECASE)
        return find_phrase(phrase, self.text)


def _multi_vector_words(names: Sequence[str], added: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Yield the positions of the first and the last token of each word that has several tokens of a textual inversion.

    A textual inversion of n vectors adds the tokens ``<cat>``, ``<cat>_1``, ..., ``<cat>_{n-1}`` to the tokenizer.

    Args:
        names: the tokens of a prompt, as strings.
        added: maps the tokens that were added to the tokenizer's vocabulary to their ids.
    """
    start = 0
    for k in range(1, len(names) + 1):
        if k < len(names) and names[k] in added and names[k] == f"{names[start]}_{k - start}":
            continue
        if k - start > 1:
            yield start, k - 1
        start = k


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


@dataclass(frozen=True)
class Alignment:
    """Maps the attention to the S tokens of a source prompt to the attention to the T tokens of an edited prompt.

    Attributes:
        transfer: float64 ``[S,T]``; entry ``(s, t)`` is the fraction of the attention to source token ``s`` that token
            ``t`` of the edited prompt uses.
        inherited: float64 ``[T]``; 1 for a token that uses the attention of source tokens, 0 for a token that uses its
            own attention.
    """

    transfer: Tensor  # [S,T]
    inherited: Tensor  # [T]


def align(source: Prompt, target: Prompt, *, substitutes: bool = True) -> Alignment:
    """Align the tokens of two prompts, encoded by the same tokenizer, word by word.

    ``source`` is the source prompt and ``target`` is the edited prompt.

    - Words that occur in both prompts, the start token and the end token use the attention of the source prompt.
    - A word that replaces a source word uses the attention of the source word if ``substitutes`` is True (replacement),
      otherwise its own attention (refinement).
    - Words that the edited prompt adds use their own attention.
    - If ``n`` tokens replace ``m`` source tokens, each of the ``n`` tokens uses ``1/n`` of the sum of the attention to
      the ``m`` source tokens, so the total attention does not change.
    - A padding token of the edited prompt uses the attention of the source token with the same index, as in the
      authors' code, because the text encoder's output depends on the index. A padding token of the source is ignored if
      the edited prompt has no padding token with the same index.
    """
    transfer = torch.zeros(source.length, target.length, dtype=torch.float64)
    inherited = torch.zeros(target.length, dtype=torch.float64)
    for source_tokens, target_tokens in aligned_tokens(source, target, substitutes=substitutes):
        if len(source_tokens) == len(target_tokens):
            shares = torch.eye(len(source_tokens), dtype=torch.float64)
        else:
            shares = torch.full((len(source_tokens), 1), 1 / len(target_tokens), dtype=torch.float64)
        transfer[torch.tensor(source_tokens)[:, None], torch.tensor(target_tokens)] = shares
        inherited[target_tokens] = 1
    padding = torch.arange(target.length)[target.end + 1 :]
    transfer[padding, padding] = 1
    inherited[padding] = 1
    return Alignment(transfer, inherited)


def aligned_tokens(source: Prompt, target: Prompt, *, substitutes: bool) -> Iterator[tuple[Tokens, Tokens]]:
    """Yield pairs ``(source_tokens, target_tokens)`` of corresponding token indices, without padding tokens.

    ``source`` is the source prompt and ``target`` is the edited prompt.
    """
    for index in range(min(source.first, target.first)):
        yield [index], [index]
    if source.end < source.length and target.end < target.length:
        yield [source.end], [target.end]
    source_words = source.words()
    target_words = target.words()
    matcher = SequenceMatcher(
        a=[word.text for word in source_words], b=[word.text for word in target_words], autojunk=False
    )
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal" or (kind == "replace" and substitutes):
            yield from _align_words(source_words[a:b], target_words[c:d])


def _align_words(source_words: list[Word], target_words: list[Word]) -> Iterator[tuple[Tokens, Tokens]]:
    """Yield pairs of token indices: the tokens of source words, and the tokens of the words that correspond to them.

    If there are as many source words as target words, each pair belongs to one word. Otherwise there is one pair, with
    the tokens of all source words and of all target words.
    """
    if len(source_words) == len(target_words):
        for source_word, target_word in zip(source_words, target_words, strict=True):
            yield source_word.tokens, target_word.tokens
    else:
        yield _all_tokens(source_words), _all_tokens(target_words)


def _all_tokens(words: list[Word]) -> Tokens:
    return [token for word in words for token in word.tokens]
