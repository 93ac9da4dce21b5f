"""The form in which a step's equation is iterated: which of the network's predictions an iteration carries over.

At the root noise, velocity and clean latent say the same; on the way there they do not. Iterating in a form is

    z <- z + omega (f(z) - z)

with ``f`` of the schedule's own prediction and a number ``relaxation`` of the step. Root, residual and tolerance are those
of ``f`` in every form.
"""

from __future__ import annotations

from typing import Literal

from rnri.models.schedule import Schedule

Parameterization = Literal["native", "epsilon", "flow", "sample", "relaxed"]
"""``own`` is that of what the schedule's network predicts; ``relaxed`` lies between it and the best constant."""

LARGEST_VARIANCE = 10.0  # of latents' components, for ``relaxed``
TOWARDS_BEST = 0.3  # the constant is best for Gaussian data; further, networks diverge; measured


def relaxation_factor(parameterization: Parameterization, schedule: Schedule, i: int) -> float:
    """``relaxation`` of ``parameterization`` at step ``i``; 1 is the own form.

    A form's own equation is ``z_t = (l_t / l_s) z_s + ...`` with ``l`` the level of alpha for noise, sigma for the
    clean latent and their sum for velocity; ``relaxation`` is that factor over the ``A`` of ``Schedule.coefficients``.
    ``relaxed`` goes ``TOWARDS_BEST`` of the way to the constant that contracts best where the network is the optimal
    prediction for Gaussian data whose variances reach from 0 to ``LARGEST_VARIANCE``.

    Where a form cannot be iterated it is 1 as well: the noise's where there is no signal (it never moves), the clean
    latent's where there is no noise left (it is known), and the relaxed one in flow matching's only step.
    """
    if parameterization in ("native", schedule.predicts):
        return 1.0
    if parameterization == "relaxed":
        left = sum(1 - schedule.derivative(i, variance) for variance in (0.0, LARGEST_VARIANCE))
        return 1 + TOWARDS_BEST * (2 / left - 1) if left else 1.0
    alpha, sigma, alpha_next, sigma_next = schedule.alpha_sigma(i)
    before, after = {
        "epsilon": (alpha, alpha_next),
        "sample": (sigma, sigma_next),
        "flow": (alpha + sigma, alpha_next + sigma_next),
    }[parameterization]
    return before / after / schedule.coefficients(i)[0] if before * after else 1.0
