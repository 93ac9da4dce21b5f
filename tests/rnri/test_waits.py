"""How often an inversion waits for its device: what it needs to know is carried over once an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from rnri import FixedPoint, ImplicitInverter, NoisePredictor, anderson_inverter
from rnri.models.predictor import to_device
from tests import devices
from tests.problems import schedule

LOOKS = ("aten::nonzero", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::masked_select")


@dataclass
class Waits:
    """What had to come from the device before the CPU could go on."""

    carried: int = 0
    looked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wavy:
    """A prediction for the numbered samples of a batch, on any device."""

    numbers: Tensor

    def __call__(self, z: Tensor, t: int) -> Tensor:
        return torch.sin(z + self.numbers.view(-1, 1, 1, 1))

    def select(self, rows: Tensor) -> Wavy:
        return Wavy(self.numbers[to_device(rows, self.numbers.device)])

    def unguided(self) -> Wavy:
        return self


@pytest.fixture
def waits(monkeypatch):
    found = Waits()
    carry, compute = devices._carried, devices._compute

    def carried(tensor, device, dtype):
        found.carried += device is not None and device.type == "cpu" and tensor.device.type != "cpu"
        return carry(tensor, device, dtype)

    def computed(operation, args, kwargs):
        name = operation.name().partition(".")[0]
        there = any(isinstance(value, devices.OnDevice) for value in args if isinstance(value, Tensor))
        masks = len(args) > 1 and name.startswith("aten::index") and isinstance(args[1], list | tuple)
        if there and (name in LOOKS or (masks and any(i is not None and i.dtype == torch.bool for i in args[1]))):
            found.looked.append(name)
        return compute(operation, args, kwargs)

    monkeypatch.setattr(devices, "_carried", carried)
    monkeypatch.setattr(devices, "_compute", computed)
    return found


@pytest.mark.parametrize(
    ("inverter", "most"),
    [
        (ImplicitInverter(FixedPoint(3, 0)), 1),
        (ImplicitInverter(FixedPoint(3, 0), "fitted"), 1),
        (ImplicitInverter(FixedPoint(4, 1e-3), "fitted"), 1),  # samples leave the batch at different times
        (anderson_inverter(2), 2),  # the second carries a small system to the CPU, for this device has no float64
        (anderson_inverter(4, 1e-3), 2),
    ],
    ids=["plain", "fitted", "early", "ours", "ours early"],
)
def test_an_evaluation_waits_once(waits, inverter, most):
    z0 = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    with devices.stand_in() as device:
        predictor = NoisePredictor(Wavy(torch.arange(3.0).to(device)))
        found = inverter.invert(z0.to(device), predictor, schedule(8))
        seed = found.seed.cpu()
    batches = found.nfe.max(1).values.sum().item()  # evaluations of the batch, whoever is still in it
    assert waits.looked == [] and batches <= waits.carried - 1 <= most * batches
    alone = inverter.invert(z0, NoisePredictor(Wavy(torch.arange(3.0))), schedule(8)).seed
    torch.testing.assert_close(seed, alone.float(), atol=2e-3, rtol=0)
