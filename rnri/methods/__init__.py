"""Inversion methods that are not implicit walks; each is an ``rnri.Inverter``."""

from rnri.methods.bdia_belm import BDIA, OBELM
from rnri.methods.direct_inversion import DirectInversion
from rnri.methods.edict import EDICT
from rnri.methods.edit_friendly_ddpm import EditFriendly, SDEdit
from rnri.methods.flow_first_order import RFInversion, UniInv
from rnri.methods.flow_second_order import FireFlow, Midpoint, RFSolver, SeedOnly
from rnri.methods.ledits import LEditsPP
from rnri.methods.null_text import NegativePrompt, NullText

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
