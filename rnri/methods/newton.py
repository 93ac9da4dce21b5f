"""Newton's method: RNRI and its variants on a scalar equation, and Newton-Krylov on the vector equation."""

from __future__ import annotations

from rnri.inversion import ImplicitInverter
from rnri.methods.registry import register_method
from rnri.solvers.newton import GNRI, RNRIMeanSign, RNRIMinimumNorm, RNRIPaper, RNRISign
from rnri.solvers.newton_krylov import NewtonKrylov

RNRI = "RNRI, Samuel et al. 2023, arXiv 2312.12540"


@register_method("rnri_paper", paper=RNRI)
def rnri_paper() -> ImplicitInverter:
    """RNRI as printed in the paper (Eq. 7 and 8)."""
    return ImplicitInverter(RNRIPaper())


@register_method("rnri_sign", paper=f"{RNRI}, published code")
def rnri_sign() -> ImplicitInverter:
    """RNRI as computed by its published code, without derivatives of the network."""
    return ImplicitInverter(RNRISign())


@register_method("rnri_mean_sign", paper=f"variant of {RNRI}")
def rnri_mean_sign() -> ImplicitInverter:
    """``rnri_sign`` with the step scaled by the latent's size and the paper's prior."""
    return ImplicitInverter(RNRIMeanSign())


@register_method("rnri_minimum_norm", paper=f"variant of {RNRI}")
def rnri_minimum_norm() -> ImplicitInverter:
    """RNRI's scalar equation solved by the step of minimum norm."""
    return ImplicitInverter(RNRIMinimumNorm())


@register_method("gnri", paper="GNRI, Samuel et al., ICLR 2025, arXiv 2312.12540")
def gnri() -> ImplicitInverter:
    """GNRI, the paper's later version, whose prior is ``q(z_t | z_0)``."""
    return ImplicitInverter(GNRI())


@register_method("newton_naive", paper=f"{RNRI}, section 4")
def newton_naive() -> ImplicitInverter:
    """Newton's method on RNRI's scalar equation without a prior."""
    return ImplicitInverter(RNRIPaper(prior_weight=0))


@register_method("newton_krylov", paper="Knoll & Keyes 2004")
def newton_krylov() -> ImplicitInverter:
    """Newton's method on the vector equation, with Jacobian-vector products."""
    return ImplicitInverter(NewtonKrylov())
