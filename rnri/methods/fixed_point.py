"""DDIM inversion and AIDI: fixed-point iterations of the implicit step equation."""

from __future__ import annotations

from rnri.inversion import ImplicitInverter
from rnri.methods.registry import register_method
from rnri.solvers.anderson import Anderson
from rnri.solvers.iterative import AveragedFixedPoint, FixedPoint

AIDI = "AIDI, Pan et al. 2023, arXiv 2309.04907"


@register_method("ddim", paper="Song et al. 2021, arXiv 2010.02502")
def ddim() -> ImplicitInverter:
    """DDIM inversion: one fixed-point iteration per step."""
    return ImplicitInverter(FixedPoint(iterations=1))


@register_method("aidi", paper=AIDI)
def aidi() -> ImplicitInverter:
    """AIDI: several fixed-point iterations per step."""
    return ImplicitInverter(FixedPoint())


@register_method("aidi_a", paper=AIDI)
def aidi_a() -> ImplicitInverter:
    """AIDI with Anderson acceleration."""
    return ImplicitInverter(Anderson())


@register_method("aidi_e", paper=AIDI)
def aidi_e() -> ImplicitInverter:
    """AIDI with its empirical acceleration, the mean of the last two iterates."""
    return ImplicitInverter(AveragedFixedPoint())
