"""NAO (Samuel et al. 2023): norm-guided paths between seeds (initial noise latents), and centroids of seeds."""

from typing import TYPE_CHECKING

from rnri.lazy import lazy_names

if TYPE_CHECKING:
    from nao.baselines import cog as cog
    from nao.baselines import cog_mean as cog_mean
    from nao.baselines import cog_path as cog_path
    from nao.baselines import lerp as lerp
    from nao.baselines import mean as mean
    from nao.baselines import normalized_lerp as normalized_lerp
    from nao.baselines import normalized_mean as normalized_mean
    from nao.baselines import slerp as slerp
    from nao.baselines import spherical_mean as spherical_mean
    from nao.norm import log_density as log_density
    from nao.norm import norm_penalty as norm_penalty
    from nao.norm import project as project
    from nao.norm import relative_log_density as relative_log_density
    from nao.norm import typical_norm as typical_norm
    from nao.path import Centroid as Centroid
    from nao.path import Path as Path
    from nao.path import centroid as centroid
    from nao.path import centroid_seeds as centroid_seeds
    from nao.path import interpolate as interpolate
    from nao.path import path_seeds as path_seeds
    from nao.polyline import path_energy as path_energy
    from nao.seeds import average_seeds as average_seeds
    from nao.seeds import seeds_between as seeds_between

__getattr__, __dir__, __all__ = lazy_names(__name__)
