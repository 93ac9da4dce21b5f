"""The SeedSelect benchmark measures memory and counts network calls correctly. Measured times are not tested."""

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


def test_memory_is_the_peak_of_live_tensors():
    before = torch.ones(1000)
    with TensorMemory() as memory:
        a = torch.zeros(250)  # 1,000 bytes
        (before * 2).sum()  # 4,000 more, and a sum of 4 bytes
        a.view(-1)[3:].add_(before[:247])  # views and older tensors do not count
        b = torch.zeros(500)
        del a, b
        torch.zeros(250)
    assert memory.peak == 1000 + 4000 + 4
    assert memory.current == 0


@pytest.mark.slow
def test_checkpointed_memory_grows_by_one_latent_per_step(networks):
    few, many = (Bench(*networks, Case("checkpoint", 1, steps, 1.0, 1)).memory() for steps in (3, 9))
    assert many - few <= 6 * 8 * 4 * 16 * 16  # float64


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "nfe"), [("full", (8, 4)), ("checkpoint", (12, 4)), ("last1", (8, 1))])
def test_bare_seconds_count_the_actual_calls(networks, mode, nfe):
    bench = Bench(*networks, Case(mode, 1, 4, 1.0, 1))
    start = bench.predictor.forward_evaluations
    bench.select(1)
    assert (bench.predictor.forward_evaluations - start, bench.predictor.backward_evaluations) == nfe
    counts = {"unet forward": 1.0, "unet both": 1000.0, "loss both": 0.0, "loss forward": 0.0}
    forward, both = nfe[0] - nfe[1], nfe[1]
    assert bench.bare_seconds(counts, 1) == forward + 1000 * both


@pytest.mark.slow
def test_measurements_are_positive(networks):
    result = measure(Case("last2", 2, 3, 1.0, 1), *networks)
    assert result["seconds"] > 0 and result["ratio"] > 0 and result["memory"] > 0
