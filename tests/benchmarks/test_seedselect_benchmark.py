"""The benchmark's memory and its counts of passes; its times are not tested."""

import pytest
import torch

from benchmarks.seedselect import Bench, Case, TensorMemory, measure
from rnri import LatentDiffusion
from seedselect import ClipFeatures


@pytest.fixture(scope="module")
def networks():
    options = {"device": "cpu", "dtype": torch.float32, "local_files_only": True}
    model = LatentDiffusion.from_pretrained("assets/models/emoji", **options)
    return model, ClipFeatures.from_pretrained("assets/models/clip", **options)


def test_memory_counts_what_is_alive_at_once():
    before = torch.ones(1000)
    with TensorMemory() as memory:
        a = torch.zeros(250)  # 1,000 bytes
        (before * 2).sum()  # 4,000 more, and a sum of 4
        a.view(-1)[3:].add_(before[:247])  # views and what was there before are free
        b = torch.zeros(500)
        del a, b
        torch.zeros(250)
    assert memory.peak == 1000 + 4000 + 4
    assert memory.alive == 0


def test_checkpointed_memory_grows_by_a_latent_a_step(networks):
    few, many = (Bench(*networks, Case("checkpoint", 1, steps, 1.0, 1)).memory() for steps in (3, 9))
    assert many - few <= 6 * 8 * 4 * 16 * 16  # float64


@pytest.mark.parametrize(("way", "nfe"), [("plain", (8, 4)), ("checkpoint", (12, 4)), ("last1", (8, 1))])
def test_needed_passes_are_those_that_are_made(networks, way, nfe):
    bench = Bench(*networks, Case(way, 1, 4, 1.0, 1))
    start = bench.predictor.forward_evaluations
    bench.select(1)
    assert (bench.predictor.forward_evaluations - start, bench.predictor.backward_evaluations) == nfe
    counts = {"unet forward": 1.0, "unet both": 1000.0, "loss both": 0.0, "loss forward": 0.0}
    forward, both = nfe[0] - nfe[1], nfe[1]
    assert bench.needed(counts, 1) == forward + 1000 * both


def test_a_measurement(networks):
    found = measure(Case("last2", 2, 3, 1.0, 1), *networks)
    assert found["seconds"] > 0 and found["ratio"] > 0 and found["memory"] > 0
