"""Image to seed: inversion of deterministic text-to-image diffusion."""

from rnri.diffusion import LatentDiffusion
from rnri.implicit import ImplicitStep, Solution, Solver
from rnri.inversion import ImplicitInverter, Inversion, Inverter
from rnri.newton import RNRIMinimumNorm, RNRIPaper, RNRISign
from rnri.predictor import Condition, Denoiser, NoisePredictor, UNetDenoiser
from rnri.sampling import ddim_step, sample, trajectory
from rnri.schedule import Schedule, alpha_bar_table
from rnri.solvers import Anderson, FixedPoint, IterativeSolver

__all__ = [
    "Anderson",
    "Condition",
    "Denoiser",
    "FixedPoint",
    "ImplicitInverter",
    "ImplicitStep",
    "Inversion",
    "Inverter",
    "IterativeSolver",
    "LatentDiffusion",
    "NoisePredictor",
    "RNRIMinimumNorm",
    "RNRIPaper",
    "RNRISign",
    "Schedule",
    "Solution",
    "Solver",
    "UNetDenoiser",
    "alpha_bar_table",
    "ddim_step",
    "sample",
    "trajectory",
]
