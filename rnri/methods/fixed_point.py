"""DDIM inversion and AIDI: inversion methods that solve the step equation by fixed-point iterations."""

from __future__ import annotations

from rnri.inversion import ImplicitInverter
from rnri.methods.common import ddim
from rnri.methods.registry import NO_CODE, register_method
from rnri.solvers.anderson import Anderson
from rnri.solvers.iterative import AveragedFixedPoint, FixedPoint

AIDI = "AIDI, Pan et al. 2023, arXiv 2309.04907"


register_method(
    "ddim",
    ddim,
    paper="Song et al. 2021, arXiv 2010.02502",
    source="ermongroup/ddim@e8df66c functions/denoising.py:16-30",
)


@register_method("aidi", paper=AIDI, source=NO_CODE)
def aidi() -> ImplicitInverter:
    """Return AIDI: several fixed-point iterations per inversion step."""
    return ImplicitInverter(FixedPoint())


@register_method("aidi_a", paper=AIDI, source=NO_CODE)
def aidi_a() -> ImplicitInverter:
    """Return AIDI with Anderson acceleration."""
    return ImplicitInverter(Anderson())


@register_method("aidi_e", paper=AIDI, source=NO_CODE)
def aidi_e() -> ImplicitInverter:
    """Return AIDI with its "empirical" acceleration, which averages the last two values ``f(z)`` of the iteration."""
    return ImplicitInverter(AveragedFixedPoint())
