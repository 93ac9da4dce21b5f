"""Inversion by PreciseInv, which optimizes the noise of each step by gradient descent through a sampler step."""

from __future__ import annotations

from rnri.inversion import ImplicitInverter
from rnri.methods.registry import NOT_COMPARED, register_method
from rnri.solvers.precise_inv import PreciseInv


@register_method("precise_inv", paper="PreciseInv, Zuo et al., NeurIPS 2025", source=NOT_COMPARED)
def precise_inv() -> ImplicitInverter:
    """Return PreciseInv, which needs derivatives of the network."""
    return ImplicitInverter(PreciseInv())
