"""What a model is: checkpoints, their schedules and samplers as tensor maps. Nothing here inverts anything."""

from rnri.models.diffusion import LatentDiffusion
from rnri.models.predictor import Condition, Denoiser, NoisePredictor, UNetDenoiser
from rnri.models.sampling import ddim_step, sample, trajectory
from rnri.models.schedule import Schedule
from rnri.models.scheduler import alpha_bar_table

__all__ = [
    "Condition",
    "Denoiser",
    "LatentDiffusion",
    "NoisePredictor",
    "Schedule",
    "UNetDenoiser",
    "alpha_bar_table",
    "ddim_step",
    "sample",
    "trajectory",
]
