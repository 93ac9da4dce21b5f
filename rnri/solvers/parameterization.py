"""Parameterization of the fixed-point iteration: which of the network's predictions an iteration keeps constant.

Noise, flow velocity and clean latent are equivalent at the root of a step's equation, but not before it. Iterating in
one of them is

    z <- z + relaxation (f(z) - z)

with ``f`` of the network's own prediction and a number ``relaxation`` per step. Root, residual and tolerance are those
of ``f`` in every parameterization.
"""

from __future__ import annotations

from typing import Literal

from rnri.models.schedule import Schedule

Parameterization = Literal["native", "epsilon", "flow", "sample", "relaxed"]
"""``native`` is the network's own prediction, ``epsilon`` the noise ``n``, ``flow`` the velocity ``n - x_0``, and
``sample`` the clean latent ``x_0``. ``relaxed`` lies between ``native`` and the constant that contracts best."""

MAX_VARIANCE = 10.0
"""Largest variance of a latent's components that ``relaxed`` assumes."""
TOWARDS_BEST = 0.3
"""Fraction of the way from ``native`` to the best constant for Gaussian data; networks diverge beyond; measured."""


def relaxation_factor(parameterization: Parameterization, schedule: Schedule, i: int) -> float:
    """Return the relaxation of sampling step ``i``; 1 is the native iteration.

    The equation in one parameterization is ``z_t = (l_t / l_s) z_s + ...``, where the level ``l`` is alpha for
    ``epsilon``, sigma for ``sample`` and alpha + sigma for ``flow``. The relaxation is that factor over the ``A`` of
    ``Schedule.coefficients``. ``relaxed`` goes ``TOWARDS_BEST`` of the way to the constant that contracts best if the
    network is optimal for Gaussian data of variances between 0 and ``MAX_VARIANCE``.

    The relaxation is 1, too, where a parameterization cannot be iterated: ``epsilon`` without signal (it would never
    move), ``sample`` without noise (it is known), and ``relaxed`` in the only step of a one-step flow schedule.
    """
    if parameterization in ("native", schedule.predicts):
        return 1.0
    if parameterization == "relaxed":
        slopes = sum(1 - schedule.derivative(i, variance) for variance in (0.0, MAX_VARIANCE))
        return 1 + TOWARDS_BEST * (2 / slopes - 1) if slopes else 1.0
    alpha, sigma, alpha_next, sigma_next = schedule.alpha_sigma(i)
    level, level_next = {
        "epsilon": (alpha, alpha_next),
        "sample": (sigma, sigma_next),
        "flow": (alpha + sigma, alpha_next + sigma_next),
    }[parameterization]
    return level / level_next / schedule.coefficients(i)[0] if level * level_next else 1.0
