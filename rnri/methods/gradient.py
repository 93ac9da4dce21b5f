"""Inversion by gradient descent on the squared residual of the step equation, and by ExactDPM's forward step method."""

from __future__ import annotations

from rnri.inversion import ImplicitInverter
from rnri.methods.registry import NO_LICENSE, register_method
from rnri.solvers.gradient import ForwardStep, GradientDescent


@register_method("exact_dpm", paper="ExactDPM, Hong et al. 2024, arXiv 2311.18387", source=NO_LICENSE)
def exact_dpm() -> ImplicitInverter:
    """Return ExactDPM's forward step method, which needs no derivatives of the network."""
    return ImplicitInverter(ForwardStep())


@register_method("gradient_descent", paper="–")
def gradient_descent() -> ImplicitInverter:
    """Return gradient descent on the squared residual of the step equation, with derivatives of the network."""
    return ImplicitInverter(GradientDescent())
