"""Words are located by the tokenizer's offsets and aligned between two prompts."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin

from rnri.models.attention.token_alignment import Prompt, align, aligned_tokens
from tests.pipelines import TOKENS, tiny_tokenizer


def tokenize(text: str) -> Prompt:
    """Tokenize with one token per letter, so that nearly every word has several."""
    return Prompt.tokenize(text, tiny_tokenizer())


def tokenize_with_vectors(text: str) -> Prompt:
    """Tokenize a prompt in which ``<my-cat>`` is a textual inversion of three vectors and ``<toy>`` one of one."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<my-cat>", "<my-cat>_1", "<my-cat>_2", "<toy>"])
    return Prompt.tokenize(TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer), tokenizer)


def transfers(source: str, target: str, **options: bool) -> dict[int, dict[int, float]]:
    """Return ``{target token: {source token: share}}`` for the target tokens that use the source's attention."""
    alignment = align(tokenize(source), tokenize(target), **options)
    columns = {t: column for t, column in enumerate(alignment.transfer.T) if alignment.inherited[t]}
    return {t: {int(s): float(column[s]) for s in column.nonzero()[:, 0]} for t, column in columns.items()}


def test_words_and_their_tokens():
    assert [(word.text, word.tokens) for word in tokenize("A  cat, (sat)").words()] == [
        ("a", [1]), ("cat", [2, 3, 4]), (",", [5]), ("(", [6]), ("sat", [7, 8, 9]), (")", [10]),
    ]  # fmt: skip


def test_empty_prompt_has_only_special_tokens():
    empty = tokenize("")
    assert (empty.words(), empty.first, empty.end, empty.length) == ([], 1, 1, TOKENS)
    assert transfers("", "") == {k: {k: 1.0} for k in range(TOKENS)}


def test_equal_prompts_transfer_everything():
    alignment = align(tokenize("a cat on a mat"), tokenize("a cat on a mat"))
    assert torch.equal(alignment.transfer, torch.eye(TOKENS, dtype=torch.float64)) and alignment.inherited.all()


def test_replaced_word_of_equal_length():
    assert transfers("a cat x", "a dog x") == {k: {k: 1.0} for k in range(TOKENS)}


def test_replaced_word_of_another_length_shares_the_sum():
    actual = transfers("a cat x", "a bull x")
    assert [actual[k] for k in (2, 3, 4, 5)] == [{2: 0.25, 3: 0.25, 4: 0.25}] * 4
    assert (actual[1], actual[6], actual[7]) == ({1: 1.0}, {5: 1.0}, {6: 1.0})  # the last is the end token
    # The source's padding starts one index earlier, at token 7. Its attention is dropped, as in the authors' code.
    assert all(actual[k] == {k: 1.0} for k in range(8, TOKENS))


@pytest.mark.parametrize(
    ("source", "target", "substitutes", "expected"),
    [
        ("a b", "a b", True, [("a", "a"), ("b", "b")]),
        ("a b", "a c", True, [("a", "a"), ("b", "c")]),
        ("a b", "a c", False, [("a", "a")]),
        ("a b c", "a d", True, [("a", "a"), ("bc", "d")]),
        ("a b c", "a d", False, [("a", "a")]),
        ("a b", "a c b", True, [("a", "a"), ("b", "b")]),
        ("a c b", "a b", True, [("a", "a"), ("b", "b")]),
        ("cat", "bull", True, [("cat", "bull")]),
        ("a", "", True, []),
        ("", "", True, []),
    ],
)
def test_aligned_tokens(source, target, substitutes, expected):
    source_letters = source.replace(" ", "")
    target_letters = target.replace(" ", "")
    first_and_end = [([0], [0]), ([1 + len(source_letters)], [1 + len(target_letters)])]
    pairs = list(aligned_tokens(tokenize(source), tokenize(target), substitutes=substitutes))
    assert pairs[:2] == first_and_end
    words = [
        ("".join(source_letters[k - 1] for k in source_tokens), "".join(target_letters[k - 1] for k in target_tokens))
        for source_tokens, target_tokens in pairs[2:]
    ]
    assert words == expected


def test_total_attention_of_words_is_preserved():
    for source, target in [("a cat x", "a bull x"), ("a bull x", "a cat x"), ("x", "y"), ("a b c", "abc de")]:
        prompts = tokenize(source), tokenize(target)
        transfer = align(*prompts).transfer[: prompts[0].end + 1, : prompts[1].end + 1]
        torch.testing.assert_close(transfer.sum(1), torch.ones(len(transfer), dtype=torch.float64))


@pytest.mark.parametrize("substitutes", [True, False])
def test_padding_is_aligned_by_index(substitutes):
    """The source ends at token 5, the edit at token 8: tokens 6 to 8 of the source are dropped, 9 to 15 transferred."""
    longer = transfers("a cat", "a red cat", substitutes=substitutes)
    assert [longer[k] for k in range(9, TOKENS)] == [{k: 1.0} for k in range(9, TOKENS)]
    assert not {6, 7, 8} & {s for column in longer.values() for s in column}
    # The source ends at token 8, the edit at token 5: tokens 6 to 15 of the edit use the source's tokens 6 to 15.
    shorter = transfers("a red cat", "a cat", substitutes=substitutes)
    assert [shorter[k] for k in range(6, TOKENS)] == [{k: 1.0} for k in range(6, TOKENS)]


def test_refinement_does_not_transfer_to_replaced_words():
    actual = transfers("a cat x", "a bull x", substitutes=False)
    assert set(range(TOKENS)) - set(actual) == {2, 3, 4, 5}
    assert (actual[1], actual[6]) == ({1: 1.0}, {5: 1.0})


@pytest.mark.parametrize("substitutes", [True, False])
def test_added_and_removed_words(substitutes):
    added = transfers("a cat", "a red cat", substitutes=substitutes)
    assert set(range(TOKENS)) - set(added) == {2, 3, 4}
    assert [added[k] for k in (5, 6, 7)] == [{2: 1.0}, {3: 1.0}, {4: 1.0}]
    removed = transfers("a red cat", "a cat", substitutes=substitutes)
    assert [removed[k] for k in (2, 3, 4)] == [{5: 1.0}, {6: 1.0}, {7: 1.0}]


def test_repeated_words_are_aligned_by_position():
    actual = transfers("a cat and a cat", "a cat and a dog", substitutes=False)
    assert [actual.get(k) for k in (2, 3, 4)] == [{2: 1.0}, {3: 1.0}, {4: 1.0}]
    assert not {9, 10, 11} & set(actual)
    assert tokenize("a cat and a cat").tokens("cat") == [2, 3, 4, 9, 10, 11]


def test_phrases_match_whole_words_of_any_case():
    assert tokenize("Cat catty").tokens("cat") == [1, 2, 3]
    assert tokenize("a big  cat x").tokens("big cat") == [2, 3, 4, 5, 6, 7]


def test_word_of_several_vectors_is_one_word():
    prompt = tokenize_with_vectors("a <my-cat> x <toy>")
    assert prompt.text == "a <my-cat> <my-cat>_1 <my-cat>_2 x <toy>"
    assert [word.tokens for word in prompt.words()] == [[1], [2, 3, 4], [5], [6]]
    assert prompt.tokens("<my-cat>") == prompt.tokens("<my-cat> <my-cat>_1 <my-cat>_2") == [2, 3, 4]
    assert prompt.tokens("<My-Cat>") == [2, 3, 4] and prompt.tokens("a <my-cat> x") == [1, 2, 3, 4, 5]
    assert prompt.tokens("<my-cat>_1") == [3] and prompt.tokens("<my-cat>_2") == [4] and prompt.tokens("<toy>") == [6]
    twice = tokenize_with_vectors("<my-cat>, <my-cat>x")
    assert twice.tokens("<my-cat>")[:3] == [1, 2, 3] and [1, 2, 3] in [word.tokens for word in twice.words()]


def test_truncated_word_of_several_vectors_keeps_its_tokens():
    prompt = tokenize_with_vectors("abcdefg hijklm <my-cat>")
    assert prompt.tokens("<my-cat>") == [14] and prompt.words()[-1].tokens == [14]
    both = tokenize_with_vectors("<my-cat> abcdefghi <my-cat>")
    assert both.tokens("<my-cat>") == [1, 2, 3, 13, 14]


@pytest.mark.parametrize("source, target", [("a red cat", "a big <my-cat>"), ("a red <my-cat>", "a big cat")])
def test_word_of_several_vectors_replaces_one_word(source, target):
    prompts = tokenize_with_vectors(source), tokenize_with_vectors(target)
    transfer = align(*prompts).transfer  # "red" and "big" are tokens 2 to 4, the cat is tokens 5 to 7
    assert torch.equal(transfer[:9, :9], torch.eye(9, dtype=torch.float64))
    one = align(tokenize_with_vectors("a <toy>"), tokenize_with_vectors("a <my-cat>")).transfer
    assert one[2].tolist()[2:5] == [1 / 3] * 3


def test_absent_word_is_rejected():
    with pytest.raises(ValueError, match=r"^the prompt 'a catty' does not contain 'cat': use words of the prompt\.$"):
        tokenize("a catty").tokens("cat")


def test_truncated_word_is_rejected():
    with pytest.raises(ValueError, match=f"'dog' comes after the first {TOKENS} tokens"):
        tokenize("abcdefgh ijklmnop dog").tokens("dog")


def test_truncated_prompts_are_aligned():
    long = "abcdefgh ijklmnop dog"
    actual = transfers(long, long)
    assert actual == {k: {k: 1.0} for k in range(TOKENS)}
    assert transfers(long, "a")[TOKENS - 1] == {TOKENS - 1: 1.0}


def test_slow_tokenizers_are_rejected():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow provides no character offsets"):
        Prompt.tokenize("a cat", Slow())
