"""Synchronizations with the device: at most one transfer to the CPU per evaluation, or per inversion without waits."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from rnri import (
    METHODS,
    Anderson,
    AveragedFixedPoint,
    FixedPoint,
    ForwardStep,
    GradientDescent,
    ImplicitInverter,
    NoisePredictor,
    PreciseInv,
    RNRISign,
    SelFix,
    anderson_inverter,
)
from rnri.inversion import check_schedule
from rnri.methods.round_trip_corrected import RoundTripCorrected
from rnri.models.predictor import to_device
from rnri.solvers import anderson
from rnri.solvers.extrapolation import PredictionHistory
from tests import devices
from tests.problems import flow_schedule, schedule
from tests.rnri.solvers.test_solvers import problem

SYNCHRONIZING = ("aten::nonzero", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::masked_select")
"""Operations whose result depends on the values of a device tensor."""


@dataclass
class Synchronizations:
    """Number of transfers to the CPU, and names of synchronizing operations on device tensors."""

    transfers: int = 0
    operations: list[str] = field(default_factory=list)


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
def synchronizations(monkeypatch):
    log = Synchronizations()
    transfer = devices.transfer
    compute = devices.compute

    def logged_transfer(tensor, device, dtype):
        log.transfers += device is not None and device.type == "cpu" and tensor.device.type != "cpu"
        return transfer(tensor, device, dtype)

    def logged_compute(operation, args, kwargs):
        name = operation.name().partition(".")[0]
        on_device = any(isinstance(value, devices.FakeTensor) for value in args if isinstance(value, Tensor))
        if on_device and (name in SYNCHRONIZING or has_boolean_index(name, args)):
            log.operations.append(name)
        return compute(operation, args, kwargs)

    monkeypatch.setattr(devices, "transfer", logged_transfer)
    monkeypatch.setattr(devices, "compute", logged_compute)
    return log


def has_boolean_index(name, args):
    """Whether the operation indexes by a mask, whose number of true elements the CPU needs."""
    if len(args) < 2 or not name.startswith("aten::index") or not isinstance(args[1], list | tuple):
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])


@pytest.mark.parametrize(
    ("inverter", "max_transfers"),
    [
        (ImplicitInverter(FixedPoint(3, 1e-9)), 1),
        (ImplicitInverter(FixedPoint(3, 1e-9), "fitted"), 1),
        (ImplicitInverter(FixedPoint(4, 1e-3), "fitted"), 1),  # samples converge at different times
        (anderson_inverter(2), 2),  # this device has no float64: a small system is solved on the CPU
        (anderson_inverter(4, 1e-3), 2),
    ],
    ids=["plain", "fitted", "early", "anderson", "anderson early"],
)
def test_one_synchronization_per_evaluation(synchronizations, inverter, max_transfers):
    z0 = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    with devices.fake_device() as device:
        predictor = NoisePredictor(Wavy(torch.arange(3.0).to(device)))
        inversion = inverter.invert(z0.to(device), predictor, schedule(8))
        seed = inversion.seed.cpu()
    evaluations = inversion.nfe.max(1).values.sum().item()  # of the batch
    assert synchronizations.operations == []
    assert evaluations <= synchronizations.transfers - 1 <= max_transfers * evaluations
    on_cpu = inverter.invert(z0, NoisePredictor(Wavy(torch.arange(3.0))), schedule(8)).seed
    torch.testing.assert_close(seed, on_cpu.float(), atol=2e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "inverter",
    [
        ImplicitInverter(FixedPoint(1, 0)),
        ImplicitInverter(FixedPoint(2, 1e-2)),  # some samples converge at their first evaluation
        ImplicitInverter(FixedPoint(2, 0), "fitted", parameterization="relaxed"),
        ImplicitInverter(AveragedFixedPoint(2, 0)),
        ImplicitInverter(RNRISign(2, 0, d=18)),
        ImplicitInverter(FixedPoint(5, 0), "fitted"),
        ImplicitInverter(AveragedFixedPoint(4, 0), allocation="by_difficulty"),
        ImplicitInverter(Anderson(5, 0)),
        ImplicitInverter(SelFix(6)),
        ImplicitInverter(ForwardStep(5, 0)),
        ImplicitInverter(GradientDescent(4, 0)),
        ImplicitInverter(PreciseInv(4)),
    ],
    ids=[
        "ddim",
        "early",
        "relaxed",
        "averaged",
        "sign",
        "five",
        "by difficulty",
        "anderson",
        "selfix",
        "forward step",
        "gradient",
        "precise",
    ],
)
@pytest.mark.parametrize("has_nan", [False, True])
def test_one_transfer_per_trajectory_without_waits(synchronizations, monkeypatch, inverter, has_nan):
    monkeypatch.setattr(anderson, "_to_float64", lambda matrix: matrix)  # CUDA has float64 on the device
    z0 = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    if has_nan:
        z0[1, 0, 0, 0] = torch.nan
    with devices.fake_device() as device:
        predictor = NoisePredictor(Wavy(torch.arange(3.0).to(device)))
        inversion = inverter.invert(z0.to(device), predictor, schedule(8))
        assert synchronizations.transfers == 1 and synchronizations.operations == []
        seed = inversion.seed.cpu()
    on_cpu = inverter.invert(z0, NoisePredictor(Wavy(torch.arange(3.0))), schedule(8))
    torch.testing.assert_close(seed, on_cpu.seed.float(), atol=2e-3, rtol=0, equal_nan=True)
    torch.testing.assert_close(inversion.residuals, on_cpu.residuals, atol=2e-3, rtol=0)
    comparable = ~(on_cpu.residuals < 1e-6)  # in float32, a residual may round to 0, which tolerance 0 accepts
    assert torch.equal(inversion.solved[comparable], on_cpu.solved[comparable])
    assert (inversion.nfe >= on_cpu.nfe).all()
    assert inversion.nfe.sum(0).max() <= inverter.solver.iterations * 8


def accelerated(nfe_per_step, extra_evaluations=0):
    return anderson_inverter(nfe_per_step, tolerance=0, extra_evaluations=extra_evaluations)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_at_most_one_wait_per_trajectory_with_a_fixed_number_of_evaluations(name, synchronizations, monkeypatch):
    inverter = METHODS[name]()
    has_fixed_number = not isinstance(inverter, ImplicitInverter) or getattr(inverter.solver, "needs_no_wait", False)
    if not has_fixed_number or isinstance(inverter, RoundTripCorrected):
        pytest.skip("the number of evaluations depends on the sample")
    monkeypatch.setattr(anderson, "_to_float64", lambda matrix: matrix)  # CUDA has float64 on the device
    steps = schedule(8)
    z0 = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    try:
        check_schedule(inverter, steps)
    except ValueError:
        steps = flow_schedule(8)
    with devices.fake_device() as device:
        predictor = NoisePredictor(Wavy(torch.arange(3.0).to(device)))
        inverter.invert(z0.to(device), predictor, steps)
        assert synchronizations.transfers <= 1 and synchronizations.operations == []


@pytest.mark.slow
@pytest.mark.parametrize("nfe_per_step, extra", [(2, 0), (1, 0), (1, 1), (5, 0)])
@pytest.mark.parametrize("steps", [4, 20])
def test_accelerated_on_a_device_equals_the_cpu(nfe_per_step, extra, steps, synchronizations, monkeypatch):
    monkeypatch.setattr(anderson, "_to_float64", lambda matrix: matrix)
    inverter = accelerated(nfe_per_step, extra)
    z0 = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    z0[1, 0, 0, 0] = torch.nan
    with devices.fake_device() as device:
        predictor = NoisePredictor(Wavy(torch.arange(3.0).to(device)))
        inversion = inverter.invert(z0.to(device), predictor, schedule(steps))
        assert synchronizations.transfers == 1 and synchronizations.operations == []
        seed = inversion.seed.cpu()
    on_cpu = inverter.invert(z0, NoisePredictor(Wavy(torch.arange(3.0))), schedule(steps))
    torch.testing.assert_close(seed, on_cpu.seed.float(), atol=2e-3, rtol=0, equal_nan=True)
    finite = [0, 2]
    assert torch.equal(inversion.nfe[:, finite], on_cpu.nfe[:, finite])
    torch.testing.assert_close(
        inversion.residuals[:, finite], on_cpu.residuals[:, finite], atol=2e-3, rtol=0, equal_nan=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(("method", "nfe", "tolerance"), [("fixed point", 5, 0), ("accelerated", 1, 1e-6)])
@pytest.mark.parametrize("steps", [4, 20, 50])
def test_waits_do_not_depend_on_the_number_of_steps(method, nfe, tolerance, steps, synchronizations, monkeypatch):
    monkeypatch.setattr(anderson, "_to_float64", lambda matrix: matrix)
    solvers = {"fixed point": ImplicitInverter(FixedPoint(nfe, tolerance))}
    inverter = solvers.get(method, anderson_inverter(nfe, tolerance))
    z0 = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    with devices.fake_device() as device:
        predictor = NoisePredictor(Wavy(torch.arange(3.0).to(device)))
        inversion = inverter.invert(z0.to(device), predictor, schedule(steps))
        assert synchronizations.transfers == 1 and synchronizations.operations == []
    assert (inversion.nfe.sum(0) == nfe * steps).all()


def test_a_device_does_not_read_whether_the_guess_is_extrapolated():
    """A sample whose last change of the prediction is undone has ``beta`` 0, and skips the step only on the device."""
    last = torch.tensor([2.0, 0.0]).view(2, 1, 1, 1)
    predictions = (torch.zeros_like(last), torch.ones_like(last), last)
    with devices.fake_device() as device:
        on_device = PredictionHistory(tuple(prediction.to(device) for prediction in predictions))
        assert anderson_inverter(1)._can_skip(on_device, 2).tolist() == [True, True]
        assert anderson_inverter(4)._can_skip(on_device, 2).tolist() == [True, False]  # this solver waits anyway
    assert anderson_inverter(1)._can_skip(PredictionHistory(predictions), 2).tolist() == [True, False]


@pytest.mark.parametrize("limits", [[2, 2], [2, 1], [1, 2]])
@pytest.mark.parametrize(
    "solver", [RNRISign(iterations=2, tolerance=0.1), GradientDescent(iterations=2, tolerance=0.1)]
)
def test_backward_counts_on_a_device_do_not_depend_on_the_limits_of_other_samples(solver, limits):
    def network(z: Tensor, _: Tensor) -> Tensor:
        return z

    with devices.fake_device() as device:
        z_s = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).to(device)

        def solve(limits: list[int]) -> list[int]:
            return solver(problem(network, z_s, a=1.0), z_s, torch.tensor(limits)).backward.tolist()

        assert solve(limits) == [solve([limit, limit])[0] for limit in limits]


@pytest.mark.parametrize("limits", [[2, 2], [2, 1]])
def test_counts_on_a_device_do_not_depend_on_the_limits_of_other_samples(limits):
    """The first sample converges at its first evaluation; its saved evaluation is counted in every batch."""

    def network(z: Tensor, _: Tensor) -> Tensor:
        return z

    with devices.fake_device() as device:
        z_s = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).to(device)
        solution = FixedPoint(2, tolerance=0.1)(problem(network, z_s, a=1.0), z_s, torch.tensor(limits))
        assert solution.nfe.tolist() == limits
        assert solution.converged.tolist() == [True, False]
