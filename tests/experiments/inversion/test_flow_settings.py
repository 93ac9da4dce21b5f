"""Evaluations and costs of methods whose solver's evaluations are two of the network each; the seeds' norm."""

import pytest

from experiments.cost import evaluations_a_step
from experiments.inversion.jobs import with_evaluations
from experiments.inversion.report import summary
from rnri.baselines import Midpoint, UniInv


def test_midpoint_takes_even_numbers_of_evaluations():
    assert with_evaluations(Midpoint(), 6).inverter.solver.iterations == 3
    assert evaluations_a_step(with_evaluations(Midpoint(), 6)) == 6
    assert with_evaluations(Midpoint(), 3) is None and with_evaluations(UniInv(), 2) is None


@pytest.mark.parametrize(("norms", "expected"), [([0.9, 1.0, 5.0], 1.0), ([0.9, 1.0, float("nan")], 1.0)])
def test_the_norm_of_a_row_is_a_median_that_a_lost_sample_does_not_move(norms, expected):
    first = {"start": None, "images": "real", "method": "ddim", "steps": 4, "guidance": 1.0, "evaluations": None}
    first |= {"prompts": "right", "generated": False, "psnr": 1.0, "latent_mse": 1.0}
    assert summary([{**first, "norm": norm} for norm in norms], seed=0)["norm"] == expected
