"""The default inversion method ``accelerated``: safeguarded Anderson acceleration with extrapolated initial guesses."""

from __future__ import annotations

from dataclasses import fields

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from rnri.inversion import ImplicitInverter
from rnri.methods.common import FixedNfeInverter
from rnri.methods.registry import register_method
from rnri.solvers.anderson import SafeguardedAnderson
from rnri.solvers.parameterization import Parameterization


def anderson_inverter(
    nfe_per_step: PositiveInt = 2,
    tolerance: NonNegativeFloat = 1e-6,
    parameterization: Parameterization = "native",
    extra_evaluations: NonNegativeInt = 0,
) -> ImplicitInverter:
    """Return the default inverter of ``rnri.invert``: safeguarded Anderson acceleration of the fixed-point iteration.

    Of all methods that ``experiment=reconstruction`` compares, the default inverter has the smallest reconstruction
    error. In each inversion step, the solver starts from the initial guess ``fitted`` (see ``ImplicitInverter``), which
    extrapolates the noise predictions of previous steps. Steps in which the iteration is expected to converge slowly
    get more network evaluations than other steps (see :mod:`rnri.solvers.budget`). A sample is removed from the batch
    as soon as its residual is at most ``tolerance``. The default tolerance is smaller than the tolerance of the RNRI
    paper (1e-4, appendix G), because the sampler magnifies the remaining residual up to a thousandfold under strong
    guidance.

    Args:
        nfe_per_step: mean number of network evaluations per inversion step.
        tolerance: a sample is converged if its residual, the mean of ``|z - f(z)|`` over the elements of its latent
            ``z``, is at most this value; ``z = f(z)`` is the equation of the inversion step.
        parameterization: the prediction (noise, velocity or clean latent) that the solver keeps constant from one
            iterate to the next, see :mod:`rnri.solvers.parameterization`.
        extra_evaluations: number of network evaluations that the whole inversion uses in addition to ``nfe_per_step``
            evaluations per step.
    """
    return ImplicitInverter(
        SafeguardedAnderson(nfe_per_step, tolerance),
        initial_guess="fitted",
        allocation="by_difficulty",
        parameterization=parameterization,
        extra_evaluations=extra_evaluations,
    )


def _with_fixed_nfe(inverter: ImplicitInverter) -> FixedNfeInverter:
    return FixedNfeInverter(**{field.name: getattr(inverter, field.name) for field in fields(inverter)})


register_method("accelerated", anderson_inverter, paper="ours")


@register_method("accelerated_8", paper="ours")
def accelerated_8(
    tolerance: NonNegativeFloat = 1e-6, parameterization: Parameterization = "native"
) -> FixedNfeInverter:
    """Return the inverter of :func:`anderson_inverter` with at most eight network evaluations per step on average.

    ``with_nfe`` of this inverter rejects every other number of evaluations.
    """
    return _with_fixed_nfe(anderson_inverter(8, tolerance, parameterization))


@register_method("accelerated_plus_one", paper="ours")
def accelerated_plus_one(
    tolerance: NonNegativeFloat = 1e-6, parameterization: Parameterization = "native"
) -> FixedNfeInverter:
    """Return the inverter of :func:`anderson_inverter` with at most N + 1 network evaluations for N inversion steps."""
    return _with_fixed_nfe(anderson_inverter(1, tolerance, parameterization, extra_evaluations=1))
