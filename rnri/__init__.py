"""Inversion of deterministic text-to-image diffusion models: from an image to the seed that generates it.

The public names of this package are imported when they are first used, so that ``import rnri`` does not import
diffusers and transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnri.api import PipelineInversion, invert
    from rnri.inversion import ImplicitInverter, Inversion, Inverter, check_schedule, with_measured_residuals
    from rnri.methods.accelerated import anderson_inverter
    from rnri.methods.decoder_inversion import DecoderInversion
    from rnri.methods.prompt_aware import PromptAware
    from rnri.methods.registry import METHODS, methods_table, register_method
    from rnri.methods.round_trip_corrected import RoundTripCorrected
    from rnri.models.deterministic import DeterministicScheduler, scheduler_for
    from rnri.models.diffusers_schedulers import alpha_bar_table
    from rnri.models.diffusion import LatentDiffusion
    from rnri.models.predictor import Condition, Denoiser, GuidedDenoiser, NoisePredictor
    from rnri.models.sampling import ddim_step, sample, trajectory
    from rnri.models.schedule import Schedule
    from rnri.models.unet import UNetDenoiser
    from rnri.solvers.anderson import Anderson, SafeguardedAnderson
    from rnri.solvers.gradient import ForwardStep, GradientDescent
    from rnri.solvers.implicit import ImplicitStep, Solution, Solver
    from rnri.solvers.iterative import AveragedFixedPoint, FixedPoint, IterativeSolver
    from rnri.solvers.newton import GNRI, RNRIMeanSign, RNRIMinimumNorm, RNRIPaper, RNRISign
    from rnri.solvers.newton_krylov import NewtonKrylov
    from rnri.solvers.renoise import ReNoise

__all__ = [
    "GNRI",
    "METHODS",
    "Anderson",
    "AveragedFixedPoint",
    "Condition",
    "DecoderInversion",
    "Denoiser",
    "DeterministicScheduler",
    "FixedPoint",
    "ForwardStep",
    "GradientDescent",
    "GuidedDenoiser",
    "ImplicitInverter",
    "ImplicitStep",
    "Inversion",
    "Inverter",
    "IterativeSolver",
    "LatentDiffusion",
    "NewtonKrylov",
    "NoisePredictor",
    "PipelineInversion",
    "PromptAware",
    "RNRIMeanSign",
    "RNRIMinimumNorm",
    "RNRIPaper",
    "RNRISign",
    "ReNoise",
    "RoundTripCorrected",
    "SafeguardedAnderson",
    "Schedule",
    "Solution",
    "Solver",
    "UNetDenoiser",
    "alpha_bar_table",
    "anderson_inverter",
    "check_schedule",
    "ddim_step",
    "invert",
    "methods_table",
    "register_method",
    "sample",
    "scheduler_for",
    "trajectory",
    "with_measured_residuals",
]

_MODULES = {
    "api": ("PipelineInversion", "invert"),
    "inversion": ("ImplicitInverter", "Inversion", "Inverter", "check_schedule", "with_measured_residuals"),
    "methods": ("METHODS", "RoundTripCorrected", "methods_table", "register_method"),
    "methods.accelerated": ("anderson_inverter",),
    "methods.decoder_inversion": ("DecoderInversion",),
    "methods.prompt_aware": ("PromptAware",),
    "models.deterministic": ("DeterministicScheduler", "scheduler_for"),
    "models.diffusers_schedulers": ("alpha_bar_table",),
    "models.diffusion": ("LatentDiffusion",),
    "models.predictor": ("Condition", "Denoiser", "GuidedDenoiser", "NoisePredictor"),
    "models.sampling": ("ddim_step", "sample", "trajectory"),
    "models.schedule": ("Schedule",),
    "models.unet": ("UNetDenoiser",),
    "solvers": (
        "GNRI",
        "Anderson",
        "AveragedFixedPoint",
        "FixedPoint",
        "ForwardStep",
        "GradientDescent",
        "ImplicitStep",
        "IterativeSolver",
        "NewtonKrylov",
        "RNRIMeanSign",
        "RNRIMinimumNorm",
        "RNRIPaper",
        "RNRISign",
        "ReNoise",
        "SafeguardedAnderson",
        "Solution",
        "Solver",
    ),
}
"""Maps each module (relative to ``rnri``) to the public names that are imported from it."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
