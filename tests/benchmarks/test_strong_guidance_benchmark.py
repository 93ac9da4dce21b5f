"""What is tried against strong guidance, on one drawing."""

import sys
from dataclasses import replace

import torch

from benchmarks import strong_guidance
from rnri import FixedPoint, NoisePredictor
from rnri.solvers.implicit import ImplicitStep
from tests.problems import gaussian, schedule


def test_a_line_an_attempt(monkeypatch, capsys):
    given = ["--attempts", "starts", "--drawings", "1", "--steps", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["strong_guidance", *given])
    strong_guidance.main()
    head, line = capsys.readouterr().out.splitlines()[-2:]
    assert head.split()[0] == "attempt" and line.startswith("three rungs, three starts, 5")
    decibels, spent = float(line.split()[5]), float(line.split()[-2])
    assert decibels > 10 and 10 < spent <= 25  # five solvers of at most five evaluations a step


def test_of_two_solutions_each_sample_has_the_better():
    denoiser, z0 = gaussian(2)
    problem = ImplicitStep.of(z0, NoisePredictor(denoiser), schedule(5), 3)
    rough, good = FixedPoint(1, 0)(problem, z0), FixedPoint(5, 0)(problem, z0)
    mixed = replace(rough, residual=torch.tensor([0.0, 1.0], dtype=torch.float64))
    kept = strong_guidance._better(mixed, good)
    assert torch.equal(kept.z[0], rough.z[0]) and torch.equal(kept.z[1], good.z[1])
    assert kept.residual.tolist() == [0.0, good.residual[1].item()]
