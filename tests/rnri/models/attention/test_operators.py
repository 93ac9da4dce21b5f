"""Operators on values equal those on explicit attention matrices, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rnri.models.attention.operators import attention, attention_weights, inject_attention_maps, inject_cross_attention
from tests.rnri.models.attention.explicit import maps, refined, replaced, reweighted

HEADS, PIXELS, TOKENS, WIDTH = 2, 15, 6, 4
EDITS, SOURCES = torch.tensor([1, 2, 4]), torch.tensor([0, 0, 3])


@pytest.fixture
def parts() -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of five rows: a source, two edits of it, another source, an edit of that."""
    random = torch.Generator().manual_seed(0)
    shapes = [(5, HEADS, PIXELS, WIDTH), (5, HEADS, TOKENS, WIDTH), (5, HEADS, TOKENS, WIDTH)]
    return tuple(torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)


def tables(transfer: Tensor | None = None, inherited: Tensor | None = None, weights: Tensor | None = None):
    rows, like = len(EDITS), {"dtype": torch.float64}
    return {
        "transfer": torch.eye(TOKENS, **like).expand(rows, -1, -1) if transfer is None else transfer,
        "inherited": torch.ones(rows, TOKENS, **like) if inherited is None else inherited,
        "weights": torch.ones(rows, TOKENS, **like) if weights is None else weights,
    }


def random_table(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def expected(parts, transfer, inherited, weights) -> Tensor:
    query, key, value = parts
    matrices = maps(query, key)
    result = matrices.clone()
    for e, (row, source) in enumerate(zip(EDITS, SOURCES, strict=True)):
        taken = replaced(matrices[source], transfer[e])
        result[row] = reweighted(refined(taken, matrices[row], inherited[e]), weights[e])
    return result @ value


@pytest.mark.parametrize(
    "changes",
    [
        {"transfer": random_table(3, TOKENS, TOKENS)},
        {"transfer": random_table(3, TOKENS, TOKENS), "inherited": random_table(3, TOKENS).round()},
        {"inherited": random_table(3, TOKENS)},
        {"weights": 4 * random_table(3, TOKENS) - 1},
        {"inherited": torch.zeros(3, TOKENS, dtype=torch.float64), "weights": random_table(3, TOKENS)},
        {name: random_table(3, *shape) for name, shape in
         {"transfer": (TOKENS, TOKENS), "inherited": (TOKENS,), "weights": (TOKENS,)}.items()},
    ],
    ids=["replace", "refine", "schedule", "reweight", "reweight_own", "all"],
)  # fmt: skip
def test_words_equal_explicit_matrices(parts, changes):
    found = inject_cross_attention(*parts, EDITS, SOURCES, **tables(**changes))
    torch.testing.assert_close(found, expected(parts, **tables(**changes)), rtol=1e-12, atol=1e-13)


def test_self_replacement_equals_explicit_matrices(parts):
    query, key, value = (part[:, :, :TOKENS] for part in parts)
    matrices = maps(query, key)
    matrices[EDITS] = matrices[SOURCES]
    found = inject_attention_maps(query, key, value, EDITS, SOURCES)
    torch.testing.assert_close(found, matrices @ value, rtol=1e-12, atol=1e-13)


def test_a_mask_goes_with_its_map(parts):
    query, key, value = parts
    mask = torch.zeros(5, HEADS, 1, TOKENS, dtype=torch.float64)
    mask[0, ..., -1] = mask[1, ..., 0] = -torch.inf
    matrices = (query @ key.transpose(-1, -2) / WIDTH**0.5 + mask).softmax(-1)
    half = tables(inherited=torch.full((3, TOKENS), 0.5, dtype=torch.float64))
    result = matrices.clone()
    result[EDITS] = (matrices[SOURCES] + matrices[EDITS]) / 2
    found = inject_cross_attention(*parts, EDITS, SOURCES, mask=mask, **half)
    torch.testing.assert_close(found, result @ value, rtol=1e-12, atol=1e-13)


def test_word_maps_equal_the_matrices_columns(parts):
    words = random_table(5, TOKENS).round()
    columns = (maps(*parts[:2]) * words[:, None, None]).sum(-1).mean(1)
    torch.testing.assert_close(attention_weights(*parts[:2], words), columns, rtol=1e-12, atol=1e-13)


def test_other_rows_are_the_same_to_the_bit(parts):
    others = torch.tensor([0, 3])
    plain = attention(*parts)[others]
    changes = tables(random_table(3, TOKENS, TOKENS), random_table(3, TOKENS), random_table(3, TOKENS))
    assert torch.equal(inject_cross_attention(*parts, EDITS, SOURCES, **changes)[others], plain)
    assert torch.equal(inject_attention_maps(*parts, EDITS, SOURCES)[others], plain)
