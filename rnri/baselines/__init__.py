"""Inversion methods that are not implicit walks; each is an ``rnri.Inverter``."""

from rnri.baselines.edict import EDICT
from rnri.baselines.embedding import NegativePrompt, NullText
from rnri.baselines.ledits import LEditsPP
from rnri.baselines.offsets import DirectInversion
from rnri.baselines.stochastic import EditFriendly, SDEdit
from rnri.baselines.two_step import BDIA, OBELM

__all__ = [
    "BDIA",
    "EDICT",
    "OBELM",
    "DirectInversion",
    "EditFriendly",
    "LEditsPP",
    "NegativePrompt",
    "NullText",
    "SDEdit",
]
