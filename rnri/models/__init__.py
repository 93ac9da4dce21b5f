"""What a model is: checkpoints, their schedules and samplers as tensor maps. Nothing here inverts anything."""

from rnri.models.diffusers_schedulers import alpha_bar_table
from rnri.models.diffusion import LatentDiffusion
from rnri.models.predictor import Condition, Denoiser, GuidedDenoiser, NoisePredictor
from rnri.models.sampling import ddim_step, sample, trajectory
from rnri.models.schedule import Schedule
from rnri.models.unet import UNetDenoiser

__all__ = [
    "Condition",
    "Denoiser",
    "GuidedDenoiser",
    "LatentDiffusion",
    "NoisePredictor",
    "Schedule",
    "UNetDenoiser",
    "alpha_bar_table",
    "ddim_step",
    "sample",
    "trajectory",
]
