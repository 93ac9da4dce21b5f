"""SeedSelect: optimize a seed so that the image generated from it shows a concept, given a few reference images."""

from typing import TYPE_CHECKING

from rnri.lazy import lazy_names

if TYPE_CHECKING:
    from seedselect.features import ClipFeatures as ClipFeatures
    from seedselect.groups import ContrastiveReward as ContrastiveReward
    from seedselect.groups import GroupReward as GroupReward
    from seedselect.groups import GroupSelect as GroupSelect
    from seedselect.groups import ImageDiversity as ImageDiversity
    from seedselect.groups import LatentDiversity as LatentDiversity
    from seedselect.groups import dpp_log_det as dpp_log_det
    from seedselect.groups import pairwise_distance as pairwise_distance
    from seedselect.groups import vendi_score as vendi_score
    from seedselect.history import Selection as Selection
    from seedselect.losses import appearance_loss as appearance_loss
    from seedselect.losses import semantic_loss as semantic_loss
    from seedselect.noise import pink_noise as pink_noise
    from seedselect.problem import Generation as Generation
    from seedselect.problem import Preview as Preview
    from seedselect.problem import Problem as Problem
    from seedselect.problem import Targets as Targets
    from seedselect.problem import Trajectory as Trajectory
    from seedselect.rewards import ClipReward as ClipReward
    from seedselect.rewards import ImageReward as ImageReward
    from seedselect.rewards import LatentReward as LatentReward
    from seedselect.rewards import Reward as Reward
    from seedselect.rewards import SeedReward as SeedReward
    from seedselect.rewards import novelty_reward as novelty_reward
    from seedselect.rewards import text_similarity as text_similarity
    from seedselect.search import BestOf as BestOf
    from seedselect.search import LocalSearch as LocalSearch
    from seedselect.select import Iteration as Iteration
    from seedselect.select import SeedSelect as SeedSelect
    from seedselect.subset import BestSubset as BestSubset

__getattr__, __dir__, __all__ = lazy_names(__name__)
