"""The form in which a step's equation is iterated: which of the network's predictions an iteration carries over.

At the root noise, velocity and clean latent say the same; on the way there they do not. Iterating in a form is

    z <- z + omega (f(z) - z)

with ``f`` of the schedule's own prediction and a number ``omega`` of the step. Root, residual and tolerance are those
of ``f`` in every form.
"""

from __future__ import annotations

from typing import Literal

from rnri.models.schedule import Prediction

Form = Literal["own", "noise", "velocity", "clean", "relaxed"]
"""``own`` is that of what the schedule's network predicts; ``relaxed`` lies between it and the best constant."""

LARGEST_VARIANCE = 10.0  # of latents' components, for ``relaxed``
TOWARDS_BEST = 0.3  # the constant is best for Gaussian data; further, networks diverge; measured
Levels = tuple[float, float, float, float]
"""``(alpha_t, sigma_t, alpha_s, sigma_s)`` of ``Schedule.levels``."""


def relaxation(form: Form, predicts: Prediction, levels: Levels) -> float:
    """``omega`` of ``form`` at a step with ``levels``; 1 is the own form.

    ``relaxed`` goes ``TOWARDS_BEST`` of the way to the constant that contracts best where the network is the optimal
    prediction for Gaussian data whose variances reach from 0 to ``LARGEST_VARIANCE``.

    Where a form cannot be iterated it is 1 as well: the noise's where there is no signal (it never moves), the clean
    latent's where there is no noise left (it is known).
    """
    alpha, sigma, alpha_next, sigma_next = levels
    if form in ("own", predicts):
        return 1.0
    if form == "relaxed":
        best = 2 / sum(1 - _derivative(predicts, levels, variance) for variance in (0.0, LARGEST_VARIANCE))
        return 1 + TOWARDS_BEST * (best - 1)
    if form == "velocity":
        return alpha_next * (alpha + sigma) / (alpha * (alpha_next + sigma_next))
    noise = 1.0 if predicts == "noise" else alpha * (alpha_next + sigma_next) / (alpha_next * (alpha + sigma))
    if form == "noise":
        return noise or 1.0
    if sigma_next == 0:
        return 1.0
    kappa = sigma / sigma_next  # times alpha_next / alpha, which a velocity's ``noise`` holds the inverse of
    if predicts == "noise":
        return kappa * alpha_next / alpha
    return kappa * (alpha_next + sigma_next) / (alpha + sigma)


def _derivative(predicts: Prediction, levels: Levels, variance: float) -> float:
    """Of ``f``, along a component of Gaussian data with ``variance``."""
    alpha, sigma, alpha_next, sigma_next = levels
    total = alpha**2 * variance + sigma**2
    if predicts == "noise":
        return (sigma - alpha / alpha_next * sigma_next) * sigma / total
    return (alpha_next * sigma - alpha * sigma_next) / (alpha_next + sigma_next) * (sigma - alpha * variance) / total
