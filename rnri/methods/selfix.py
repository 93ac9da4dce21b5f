"""Inversion by SelFix: fixed-point iterations that are pulled towards a straight trajectory."""

from __future__ import annotations

from rnri.inversion import ImplicitInverter
from rnri.methods.registry import register_method
from rnri.solvers.selfix import SelFix


@register_method(
    "selfix",
    paper="SelFix, Kim et al. 2026, arXiv 2606.17584",
    source="SeminKim/selfix@29dea64 src/flux/sampling.py:103-132,425-472",
)
def selfix() -> ImplicitInverter:
    """Return SelFix with the published settings for reconstruction."""
    return ImplicitInverter(SelFix())
