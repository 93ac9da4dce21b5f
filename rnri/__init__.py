"""Image to seed: inversion of deterministic text-to-image diffusion."""

from rnri.api import METHODS, PipelineInversion, invert
from rnri.inversion import ImplicitInverter, Inversion, Inverter, anderson_inverter, check_schedule, with_measured_residuals
from rnri.methods.decoder_inversion import DecoderInversion
from rnri.methods.prompt_aware import PromptAware
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
    "with_measured_residuals",
    "sample",
    "scheduler_for",
    "trajectory",
]
