"""The strong-guidance benchmark runs with one drawing."""

import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import strong_guidance
from rnri import FixedPoint, NoisePredictor
from rnri.solvers.implicit import ImplicitStep
from tests.problems import gaussian, schedule


@pytest.mark.slow
def test_command_prints_one_line_per_candidate(monkeypatch, capsys):
    options = ["--candidates", "starts", "--drawings", "1", "--steps", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["strong_guidance", *options])
    strong_guidance.main()
    head, line = capsys.readouterr().out.splitlines()[-2:]
    assert head.split()[0] == "candidate" and line.startswith("three scales, three starts, 5")
    decibels, nfe = float(line.split()[5]), float(line.split()[-2])
    assert decibels > 10
    assert 10 < nfe <= 25  # five solves with at most five evaluations each


def test_select_better_chooses_per_sample():
    denoiser, z0 = gaussian(2)
    problem = ImplicitStep.from_schedule(z0, NoisePredictor(denoiser), schedule(5), 3)
    rough, good = FixedPoint(1, 0)(problem, z0), FixedPoint(5, 0)(problem, z0)
    mixed = replace(rough, residual=torch.tensor([0.0, 1.0], dtype=torch.float64))
    better = strong_guidance.select_better(mixed, good)
    assert torch.equal(better.z[0], rough.z[0]) and torch.equal(better.z[1], good.z[1])
    assert better.residual.tolist() == [0.0, good.residual[1].item()]
