"""Operators on values equal operators on explicit attention maps, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rnri.models.attention.operators import attention, attention_weights, inject_attention_maps, inject_cross_attention
from tests.rnri.models.attention.reference import attention_map, refine, replace, reweight

HEADS, PIXELS, TOKENS, WIDTH = 2, 15, 6, 4
EDITS, SOURCES = torch.tensor([1, 2, 4]), torch.tensor([0, 0, 3])


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of five rows: a source, two edits of it, another source, an edit of that."""
    random = torch.Generator().manual_seed(0)
    shapes = [(5, HEADS, PIXELS, WIDTH), (5, HEADS, TOKENS, WIDTH), (5, HEADS, TOKENS, WIDTH)]
    return tuple(torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)


def tables(transfer: Tensor | None = None, inherited: Tensor | None = None, weights: Tensor | None = None):
    rows = len(EDITS)
    like = {"dtype": torch.float64}
    return {
        "transfer": torch.eye(TOKENS, **like).expand(rows, -1, -1) if transfer is None else transfer,
        "inherited": torch.ones(rows, TOKENS, **like) if inherited is None else inherited,
        "weights": torch.ones(rows, TOKENS, **like) if weights is None else weights,
    }


def random_table(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def expected(qkv, transfer, inherited, weights) -> Tensor:
    query, key, value = qkv
    maps = attention_map(query, key)
    result = maps.clone()
    for e, (row, source) in enumerate(zip(EDITS, SOURCES, strict=True)):
        source_map = replace(maps[source], transfer[e])
        result[row] = reweight(refine(source_map, maps[row], inherited[e]), weights[e])
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
    ids=["replace", "refine", "schedule", "reweight", "reweight without source", "all"],
)  # fmt: skip
def test_cross_attention_equals_reference(qkv, changes):
    actual = inject_cross_attention(*qkv, EDITS, sources=SOURCES, **tables(**changes))
    torch.testing.assert_close(actual, expected(qkv, **tables(**changes)), rtol=1e-12, atol=1e-13)


def test_self_attention_equals_reference(qkv):
    query, key, value = (tokens[:, :, :TOKENS] for tokens in qkv)
    maps = attention_map(query, key)
    maps[EDITS] = maps[SOURCES]
    actual = inject_attention_maps(query, key, value, EDITS, sources=SOURCES)
    torch.testing.assert_close(actual, maps @ value, rtol=1e-12, atol=1e-13)


def test_mask_is_that_of_the_map(qkv):
    query, key, value = qkv
    mask = torch.zeros(5, HEADS, 1, TOKENS, dtype=torch.float64)
    mask[0, ..., -1] = mask[1, ..., 0] = -torch.inf
    maps = (query @ key.transpose(-1, -2) / WIDTH**0.5 + mask).softmax(-1)
    half = tables(inherited=torch.full((3, TOKENS), 0.5, dtype=torch.float64))
    result = maps.clone()
    result[EDITS] = (maps[SOURCES] + maps[EDITS]) / 2
    actual = inject_cross_attention(*qkv, EDITS, sources=SOURCES, mask=mask, **half)
    torch.testing.assert_close(actual, result @ value, rtol=1e-12, atol=1e-13)


def test_attention_weights_equal_columns_of_maps(qkv):
    words = random_table(5, 2, TOKENS).round()
    columns = torch.einsum("bhpt,bkt->bkp", attention_map(*qkv[:2]), words) / HEADS
    torch.testing.assert_close(attention_weights(*qkv[:2], words), columns, rtol=1e-12, atol=1e-13)


def test_other_rows_are_bit_identical(qkv):
    others = torch.tensor([0, 3])
    expected_rows = attention(*qkv)[others]
    changes = tables(random_table(3, TOKENS, TOKENS), random_table(3, TOKENS), random_table(3, TOKENS))
    assert torch.equal(inject_cross_attention(*qkv, EDITS, sources=SOURCES, **changes)[others], expected_rows)
    assert torch.equal(inject_attention_maps(*qkv, EDITS, sources=SOURCES)[others], expected_rows)
