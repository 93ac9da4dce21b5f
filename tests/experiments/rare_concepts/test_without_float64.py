"""The rare-concepts experiment on a fake device without float64, like Apple's MPS (:mod:`tests.devices`)."""

import json
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from nao import norm_penalty, path_seeds
from rnri import ImplicitInverter, RNRIMeanSign, anderson_inverter
from seedselect import SeedSelect
from tests.devices import DEVICE, FakeAccelerator, FakeTensor, fake_device
from tests.experiments.tiny_configs import NAO, PLAIN, SELECT, rare_concepts, run_to_end


@pytest.fixture
def device():
    with fake_device() as fake:
        yield fake


def test_fake_device_rejects_float64_and_mixed_devices(device):
    there, here = torch.ones(2, 3, device=device), torch.ones(2, 3)
    assert isinstance(there + 1, FakeTensor) and not isinstance(there.cpu() + 1, FakeTensor)
    for forbidden in (
        there.double,
        lambda: there.to(torch.float64),
        lambda: here.double().to(device),
        lambda: torch.zeros(2, dtype=torch.float64, device=device),
        lambda: torch.tensor(1.0, dtype=torch.float64, device=device),
        lambda: there.sum(dtype=torch.float64),
    ):
        with pytest.raises(TypeError, match="float64"):
            forbidden()
    for mixture in (
        lambda: there + here,
        lambda: torch.cat([here, there]),
        lambda: torch.where(here > 0, there, there),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixture()


def strategy() -> SingleDeviceStrategy:
    return SingleDeviceStrategy(DEVICE, accelerator=FakeAccelerator())


OURS = replace(NAO, guidance=3.0, inverter=anderson_inverter())
PAPERS = replace(
    SELECT,
    guidance=2.0,
    inverter=ImplicitInverter(RNRIMeanSign(1)),
    seed_init=path_seeds,
    select=SeedSelect(1, step_weights=(0.3, 0.7), norm="keep", penalty=norm_penalty, patience=1),
)
ARMS = {"plain": PLAIN, "ours": OURS, "papers": PAPERS}
FEW = {"concepts": ["owl", "cat"], "concepts_per_batch": 2}


def images(task) -> dict[str, torch.Tensor]:
    return {
        f"{name} {concept.name}": task.context.units(name).read(concept.key)[0]["images"].float()
        for name in task.arms
        for concept in task.context.concepts
    }


@pytest.mark.slow
def test_main_job_gives_the_same_images_as_on_the_cpu(tmp_path):
    expected = images(run_to_end(rare_concepts(tmp_path / "cpu", ARMS, **FEW)))
    with fake_device():
        task = rare_concepts(tmp_path / "there", ARMS, **FEW)
        run_to_end(task, accelerator="auto", strategy=strategy())
        assert task.networks.model.device == DEVICE and task.networks.numerics["device"] == DEVICE.type
        actual = images(task)
    for name, expectation in expected.items():
        assert (actual[name] - expectation).abs().mean() < 1, name  # of 255: float32 trajectory
    rows = json.loads((tmp_path / "there" / "run" / "results.json").read_text())["rows"]
    assert all(row["fid"] >= 0 and row["not_finite"] == 0 for row in rows if row["bucket"] == "total")
