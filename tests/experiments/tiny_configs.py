"""The rare-concepts experiment with images of colored squares and a tiny random model, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from lightning.pytorch import Trainer

from experiments.data.concepts import Concept
from experiments.data.images import Images
from experiments.evaluation.classifier import Classifier, Preprocessing
from experiments.rare_concepts.arm import Arm
from experiments.rare_concepts.task import RareConceptsExperiment
from nao import centroid_seeds
from rnri import FixedPoint, ImplicitInverter, LatentDiffusion
from seedselect import ClipFeatures, SeedSelect
from tests.pipelines import tiny_stable_diffusion

COLORS = {"cat": (250, 120, 20), "owl": (30, 60, 200), "fox": (200, 30, 30)}
PLAIN = Arm(1.0)
NAO = Arm(1.0, ImplicitInverter(FixedPoint(2)), centroid_seeds)
SELECT = Arm(1.0, ImplicitInverter(FixedPoint(2)), centroid_seeds, SeedSelect(1, step_weights=(0.3, 0.7)))


def square(item: tuple[str, int], size: tuple[int, int]) -> np.ndarray:
    """Return an image of one color whose upper half is darker, by the number of the image."""
    name, number = item
    image = np.broadcast_to(np.array(COLORS[name], np.uint8)[:, None, None], (3, *size)).copy()
    image[:, : size[0] // 2] //= number + 2
    return image


@dataclass(frozen=True)
class Squares:
    """A source of three rare concepts with three references and two held-out images each."""

    def concepts(self) -> list[Concept]:
        return [Concept(name, f"a {name}", 5, "tail", Images([(name, k) for k in range(3)], square)) for name in COLORS]

    def real_images(self) -> Images:
        return Images([(name, k) for name in COLORS for k in (7, 8)], square)

    def labeled_real_images(self) -> dict[str, Images]:
        return {name: Images([(name, k) for k in (7, 8)], square) for name in COLORS}


def tiny(device: object = "cpu", *, kind: type[LatentDiffusion] = LatentDiffusion) -> LatentDiffusion:
    return kind(tiny_stable_diffusion().to(device))


_load_clip = partial(ClipFeatures.from_pretrained, "assets/models/clip", dtype=torch.float32, local_files_only=True)
_clip_on_cpu = cache(partial(_load_clip, device="cpu"))


def clip(device: str | torch.device) -> ClipFeatures:
    """Return the embedded CLIP model; its weights are frozen, so that the runs of a process share it on the CPU."""
    return _clip_on_cpu() if torch.device(device).type == "cpu" else _load_clip(device=device)


def trainer(**options: object) -> Trainer:
    defaults = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, "inference_mode": False,
        "use_distributed_sampler": False, "enable_model_summary": False, "enable_checkpointing": False,
    }  # fmt: skip
    return Trainer(**defaults | options)


def tiny_classifier(folder: Path, labels: Sequence[str] = tuple(COLORS), seed: int = 0) -> str:
    """Save a random classifier with these labels in ``folder``; return the folder."""
    if not (folder / "config.json").is_file():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = timm.create_model("test_resnet", num_classes=len(labels))
        Classifier(network, labels, Preprocessing(16, (0.5,) * 3, (0.5,) * 3)).save(folder, "test_resnet")
    return str(folder)


def tiny_emoji_classifier(folder: Path) -> str:
    """Return the override that selects a small random classifier with the labels of the embedded corpus."""
    labels = json.loads(Path("assets/models/classifier/config.json").read_text())["labels"]
    return f"data.classifier={tiny_classifier(folder, labels)}"


def rare_concepts(folder: Path, arms: Mapping[str, Arm], **changes: object) -> RareConceptsExperiment:
    """Return the unprepared task; its classifier and its results are below ``folder``."""
    options = {
        "source": Squares(), "concepts": "all", "buckets": ["tail"], "model": tiny, "clip": clip,
        "classifier": tiny_classifier(folder / "classifier"), "arms": arms, "steps": 2, "samples": 2, "references": 2,
        "concepts_per_batch": 3, "seed": 0, "run_dir": str(folder / "run"), "gradient_checkpointing": False,
    }  # fmt: skip
    return RareConceptsExperiment(**options | changes)


def run_to_end(task: Any, **options: object) -> Any:
    """Prepare and run ``task`` on a trainer with these options; return the task."""
    task_trainer = trainer(**options)
    task.prepare(task_trainer)
    task.run(task_trainer)
    return task
