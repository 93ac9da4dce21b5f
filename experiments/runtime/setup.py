"""Creation of a run's objects: the task, the trainer and the loggers of a config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from experiments.base import Task
