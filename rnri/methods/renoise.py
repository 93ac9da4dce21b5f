"""Inversion by ReNoise: fixed-point iterations whose predictions are averaged."""

from __future__ import annotations

from rnri.inversion import ImplicitInverter
from rnri.methods.registry import NO_LICENSE, register_method
from rnri.solvers.renoise import ReNoise

RENOISE = "ReNoise, Garibi et al. 2024, arXiv 2403.14602"


@register_method("renoise", paper=RENOISE, source=NO_LICENSE)
def renoise() -> ImplicitInverter:
    """Return ReNoise with the authors' numbers of network evaluations and of averaged predictions."""
    return ImplicitInverter(ReNoise())


@register_method("renoise_one_window", paper=f"variant of {RENOISE}", source=NO_LICENSE)
def renoise_one_window() -> ImplicitInverter:
    """Return ReNoise with the same averaging window in all inversion steps, also in those with timesteps below 250."""
    return ImplicitInverter(ReNoise(clean_below=0))
