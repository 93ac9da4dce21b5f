"""Words are found and aligned by the offsets that the tokenizer gives."""

from __future__ import annotations

import pytest
import torch

from rnri.editing import Prompt, align
from tests.pipelines import TOKENS, tiny_tokenizer


def read(text: str) -> Prompt:
    """With one token a letter, so that nearly every word has several."""
    return Prompt.tokenize(text, tiny_tokenizer())


def taken(source: str, target: str, **options: bool) -> dict[int, dict[int, float]]:
    """Of each of the target's tokens what it takes of the source's; nothing of those that keep their own."""
    alignment = align(read(source), read(target), **options)
    columns = {t: column for t, column in enumerate(alignment.transfer.T) if alignment.inherited[t]}
    return {t: {int(s): float(column[s]) for s in column.nonzero()[:, 0]} for t, column in columns.items()}


def test_words_have_the_tokens_of_their_letters():
    assert [(word.text, word.tokens) for word in read("A  cat, (sat)").words()] == [
        ("a", [1]), ("cat", [2, 3, 4]), (",", [5]), ("(", [6]), ("sat", [7, 8, 9]), (")", [10]),
    ]  # fmt: skip


def test_an_empty_prompt_has_only_its_ends():
    empty = read("")
    assert (empty.words(), empty.first, empty.end, empty.length) == ([], 1, 1, TOKENS)
    assert taken("", "") == {k: {k: 1.0} for k in range(TOKENS)}


def test_a_prompt_takes_all_of_itself():
    alignment = align(read("a cat on a mat"), read("a cat on a mat"))
    assert torch.equal(alignment.transfer, torch.eye(TOKENS, dtype=torch.float64)) and alignment.inherited.all()


def test_a_word_takes_over_the_tokens_of_the_one_it_stands_for():
    assert taken("a cat x", "a dog x") == {k: {k: 1.0} for k in range(TOKENS)}


def test_a_word_of_another_length_takes_over_the_sum():
    found = taken("a cat x", "a bull x")
    assert [found[k] for k in (2, 3, 4, 5)] == [{2: 0.25, 3: 0.25, 4: 0.25}] * 4
    assert (found[1], found[6], found[7]) == ({1: 1.0}, {5: 1.0}, {6: 1.0})  # and the end takes over the end
    assert all(found[k] == {k: 1.0, 7: 1 / 8} for k in range(8, TOKENS))  # the source's padding begins a place before


def test_no_attention_is_lost_or_made_where_every_word_has_its_own():
    for source, target in [("a cat x", "a bull x"), ("a bull x", "a cat x"), ("x", "y"), ("a b c", "abc de")]:
        transfer = align(read(source), read(target)).transfer
        torch.testing.assert_close(transfer.sum(1), torch.ones(TOKENS, dtype=torch.float64))


def test_refinement_lets_new_words_keep_their_own():
    found = taken("a cat x", "a bull x", substitutes=False)
    assert set(range(TOKENS)) - set(found) == {2, 3, 4, 5}
    assert (found[1], found[6]) == ({1: 1.0}, {5: 1.0})


@pytest.mark.parametrize("substitutes", [True, False])
def test_added_words_keep_their_own_and_removed_ones_are_dropped(substitutes):
    added = taken("a cat", "a red cat", substitutes=substitutes)
    assert set(range(TOKENS)) - set(added) == {2, 3, 4}
    assert [added[k] for k in (5, 6, 7)] == [{2: 1.0}, {3: 1.0}, {4: 1.0}]
    removed = taken("a red cat", "a cat", substitutes=substitutes)
    assert [removed[k] for k in (2, 3, 4)] == [{5: 1.0}, {6: 1.0}, {7: 1.0}]


def test_repeated_words_are_told_apart_by_their_place():
    found = taken("a cat and a cat", "a cat and a dog", substitutes=False)
    assert [found.get(k) for k in (2, 3, 4)] == [{2: 1.0}, {3: 1.0}, {4: 1.0}]
    assert not {9, 10, 11} & set(found)
    assert read("a cat and a cat").tokens("cat") == [2, 3, 4, 9, 10, 11]


def test_words_are_whole_and_their_case_does_not_count():
    assert read("Cat catty").tokens("cat") == [1, 2, 3]
    assert read("a big  cat x").tokens("big cat") == [2, 3, 4, 5, 6, 7]


def test_an_absent_word_is_said():
    with pytest.raises(ValueError, match=r"^the prompt 'a catty' has no 'cat': name words that stand in it\.$"):
        read("a catty").tokens("cat")


def test_a_word_beyond_what_the_encoder_reads_is_said():
    with pytest.raises(ValueError, match=f"'dog' stands beyond the {TOKENS} tokens"):
        read("abcdefgh ijklmnop dog").tokens("dog")


def test_prompts_longer_than_the_encoder_reads_align_as_far_as_it_reads():
    long = "abcdefgh ijklmnop dog"
    found = taken(long, long)
    assert found == {k: {k: 1.0} for k in range(TOKENS)}
    assert set(taken(long, "a")) == {0, 1, 2}  # the source has no padding to take over


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow says no offsets"):
        Prompt.tokenize("a cat", Slow())
