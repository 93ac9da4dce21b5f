"""Parameterization of the fixed-point iteration: which kind of prediction an update keeps constant.

The network's prediction can be converted to noise, to the velocity of flow matching or to the clean latent. Noise,
velocity and clean latent give the same root of the step equation ``z = f(z)``, but different iterates before the root.
In every parameterization, the iteration is

    z <- z + relaxation * (f(z) - z)

where ``f`` uses the network's own prediction, and ``relaxation`` is one number for each step of the sampler. In every
parameterization, the residual is the mean of ``|z - f(z)|``, without the relaxation factor, and the solver compares
this residual with the tolerance.
"""

from __future__ import annotations

from typing import Literal

from rnri.models.schedule import Schedule

Parameterization = Literal["native", "epsilon", "flow", "sample", "relaxed"]
"""The kind of prediction that an update of the fixed-point iteration keeps constant.

``native`` is the network's own prediction, ``epsilon`` is the noise ``n``, ``flow`` is the velocity ``n - x_0``, and
``sample`` is the clean latent ``x_0``. ``relaxed`` uses a relaxation factor between 1, the factor of ``native``, and
the factor with the fastest convergence for Gaussian data.
"""

MAX_VARIANCE = 10.0
"""Largest variance of a latent's components for which the parameterization ``relaxed`` optimizes its relaxation factor.

The smallest variance for which the relaxation factor is optimized is 0.
"""
TOWARDS_BEST = 0.3
"""Weight of the optimal relaxation factor for Gaussian data in the relaxation factor of ``relaxed``, in [0, 1].

The relaxation factor of ``relaxed`` is ``(1 - weight) * 1 + weight * optimal factor``. With weight 0, ``relaxed``
equals ``native``. In measurements with real networks, the iteration diverged with weights above 0.3.
"""


def relaxation_factor(parameterization: Parameterization, schedule: Schedule, i: int) -> float:
    """Return the relaxation factor of the fixed-point iteration that inverts sampling step ``i``.

    With factor 1, an update keeps the network's own prediction constant. The step leads from the noisier latent ``z_t``
    to the cleaner latent ``z_s``. In a parameterization, the step equation is ``z_t = (l_t / l_s) z_s + ...`` with a
    level ``l``. The level ``l`` is the signal level alpha for ``epsilon``, the noise level sigma for ``sample``, and
    alpha + sigma for ``flow``. The relaxation factor is ``(l_t / l_s) / A`` with the coefficient ``A`` of
    ``Schedule.coefficients``.

    The relaxation factor of ``relaxed`` is ``1 + TOWARDS_BEST * (best - 1)``. Here ``best`` is the factor with the
    fastest convergence if the network is optimal for Gaussian data with variances between 0 and ``MAX_VARIANCE``.

    The relaxation factor is also 1 if the parameterization has no usable iteration. There is no usable iteration for
    ``epsilon`` if one end of the step has no signal, and for ``sample`` if one end of the step has no noise.
    ``relaxed`` has no usable iteration if a flow-matching schedule has only one step.
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
