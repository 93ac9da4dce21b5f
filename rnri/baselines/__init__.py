"""Inversion methods that are not implicit walks; each is an ``rnri.Inverter``."""

from rnri.baselines.edict import EDICT
from rnri.baselines.embedding import NegativePrompt, NullText
from rnri.baselines.flow import RFInversion, UniInv
from rnri.baselines.flow_second_order import FireFlow, Midpoint, RFSolver, SeedOnly
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
    "FireFlow",
    "LEditsPP",
    "Midpoint",
    "NegativePrompt",
    "NullText",
    "RFInversion",
    "RFSolver",
    "SDEdit",
    "SeedOnly",
    "UniInv",
]
