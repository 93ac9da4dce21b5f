"""Inversion by Newton's method for a scalar equation (RNRI and its variants) or a vector equation (Newton-Krylov)."""

from __future__ import annotations

from rnri.inversion import ImplicitInverter
from rnri.methods.registry import NO_CODE, NO_LICENSE, register_method
from rnri.solvers.newton import GNRI, RNRIMeanSign, RNRIMinimumNorm, RNRIPaper, RNRISign
from rnri.solvers.newton_krylov import NewtonKrylov

RNRI = "RNRI, Samuel et al. 2023, arXiv 2312.12540"


@register_method("rnri_paper", paper=RNRI, source=NO_LICENSE)
def rnri_paper() -> ImplicitInverter:
    """Return RNRI as printed in the paper (Eq. 7 and 8)."""
    return ImplicitInverter(RNRIPaper())


@register_method("rnri_sign", paper=f"{RNRI}, published code", source=NO_LICENSE)
def rnri_sign() -> ImplicitInverter:
    """Return RNRI as computed by the authors' published code, without derivatives of the network."""
    return ImplicitInverter(RNRISign())


@register_method("rnri_sign_euler", paper=f"{RNRI}, published code for SDXL turbo", source=NO_LICENSE)
def rnri_sign_euler() -> ImplicitInverter:
    """Return RNRI as in the authors' SDXL turbo code: latents are scaled as in diffusers' EulerDiscreteScheduler."""
    return ImplicitInverter(RNRISign(coordinates="euler"), initial_guess="scaled")


@register_method("rnri", paper=f"{RNRI}, with one step size for all latent sizes", source=NO_LICENSE)
def rnri() -> ImplicitInverter:
    """Return RNRI with the paper's prior (Eq. 1) and an update divided by the latent's number of elements (``d``)."""
    return ImplicitInverter(RNRIMeanSign())


@register_method("rnri_minimum_norm", paper=f"variant of {RNRI}", source=NO_LICENSE)
def rnri_minimum_norm() -> ImplicitInverter:
    """Return the variant of RNRI whose update is the shortest update that solves the linearized scalar equation."""
    return ImplicitInverter(RNRIMinimumNorm())


@register_method("gnri", paper="GNRI, Samuel et al., ICLR 2025, arXiv 2312.12540", source=NO_LICENSE)
def gnri() -> ImplicitInverter:
    """Return GNRI (later version of the RNRI paper), whose prior is conditioned on the clean latent."""
    return ImplicitInverter(GNRI())


@register_method("newton_naive", paper=f"{RNRI}, section 4", source=NO_LICENSE)
def newton_naive() -> ImplicitInverter:
    """Return Newton's method for the scalar equation of RNRI without the prior term."""
    return ImplicitInverter(RNRIPaper(prior_weight=0))


@register_method("newton_krylov", paper="Knoll & Keyes 2004", source=NO_CODE)
def newton_krylov() -> ImplicitInverter:
    """Return Newton's method for the vector equation ``z - f(z) = 0``, with Jacobian-vector products."""
    return ImplicitInverter(NewtonKrylov())
