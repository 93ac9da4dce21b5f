"""Image to seed: inversion of deterministic text-to-image diffusion."""

from rnri.anderson import Anderson, SafeguardedAnderson
from rnri.decoder_inversion import DecoderInversion
from rnri.diffusion import LatentDiffusion
from rnri.gradient import ForwardStep, GradientDescent
from rnri.implicit import ImplicitStep, Solution, Solver
from rnri.inversion import ImplicitInverter, Inversion, Inverter, accelerated
from rnri.newton import RNRIMinimumNorm, RNRIPaper, RNRISign
from rnri.newton_krylov import NewtonKrylov
from rnri.predictor import Condition, Denoiser, NoisePredictor, UNetDenoiser
from rnri.prompt_aware import PromptAware
from rnri.renoise import ReNoise
from rnri.sampling import ddim_step, sample, trajectory
from rnri.schedule import Schedule, alpha_bar_table
from rnri.solvers import AveragedFixedPoint, FixedPoint, IterativeSolver

__all__ = [
    "Anderson",
    "AveragedFixedPoint",
    "Condition",
    "DecoderInversion",
    "Denoiser",
    "FixedPoint",
    "ForwardStep",
    "GradientDescent",
    "ImplicitInverter",
    "ImplicitStep",
    "Inversion",
    "Inverter",
    "IterativeSolver",
    "LatentDiffusion",
    "NewtonKrylov",
    "NoisePredictor",
    "PromptAware",
    "RNRIMinimumNorm",
    "RNRIPaper",
    "RNRISign",
    "ReNoise",
    "SafeguardedAnderson",
    "Schedule",
    "Solution",
    "Solver",
    "UNetDenoiser",
    "accelerated",
    "alpha_bar_table",
    "ddim_step",
    "sample",
    "trajectory",
]
