"""Inversion by gradient descent on the residual, and ExactDPM's descent without derivatives of the network."""

from __future__ import annotations

from rnri.inversion import ImplicitInverter
from rnri.methods.registry import register_method
from rnri.solvers.gradient import ForwardStep, GradientDescent


@register_method("exact_dpm", paper="ExactDPM, Hong et al. 2024, arXiv 2311.18387")
def exact_dpm() -> ImplicitInverter:
    """ExactDPM's forward step method."""
    return ImplicitInverter(ForwardStep())


@register_method("gradient_descent", paper="–")
def gradient_descent() -> ImplicitInverter:
    """Gradient descent on the squared residual, with derivatives of the network."""
    return ImplicitInverter(GradientDescent())
