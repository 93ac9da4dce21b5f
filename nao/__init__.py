"""NAO: norm-guided paths between seeds, and norm-guided centroids of seeds (Samuel et al. 2023)."""

from nao.baselines import lerp, mean, normalized_lerp, normalized_mean, slerp, spherical_mean
from nao.norm import log_density, norm_penalty, project, relative_log_density, typical_norm
from nao.path import Centroid, Path, centroid, centroid_seeds, interpolate, path_seeds
from nao.polyline import path_energy
from nao.seeds import average_seeds, seeds_between

__all__ = [
    "Centroid",
    "Path",
    "average_seeds",
    "centroid",
    "centroid_seeds",
    "interpolate",
    "lerp",
    "log_density",
    "mean",
    "norm_penalty",
    "normalized_lerp",
    "normalized_mean",
    "path_energy",
    "path_seeds",
    "project",
    "relative_log_density",
    "seeds_between",
    "slerp",
    "spherical_mean",
    "typical_norm",
]
