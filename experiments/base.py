"""What every experiment on concepts is given, and how it prepares: concepts chosen, networks loaded, input checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import field
from functools import cached_property
from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from experiments.cache.store import numerics
from experiments.data.concepts import Buckets, Concept, ConceptSource, Wanted, choose, with_references
from experiments.evaluation.classifier import Classifier, load_classifier
from experiments.runtime.unit_queue import ResumableRun
from rnri import LatentDiffusion
from rnri.models.fingerprint import fingerprint
from rnri.validation import NonEmptyStr, RandomSeed, dataclass
from seedselect import ClipFeatures


@dataclasses.dataclass(frozen=True)
class Networks:
    """Networks that a Lightning module uses but must not own: neither its checkpoints nor its state hold them.

    ``classifier`` is the judge, whose features serve the distances too; it is never the network of ``clip``.
    """

    model: LatentDiffusion
    clip: ClipFeatures
    classifier: Classifier

    @cached_property
    def model_fingerprint(self) -> str:
        """Of the text-to-image model, which no experiment changes."""
        return self.model.fingerprint

    @cached_property
    def clip_fingerprint(self) -> str:
        """Of CLIP's weights, preprocessing and words."""
        clip = self.clip
        settings = {
            "mean": clip.mean.flatten().tolist(),
            "std": clip.std.flatten().tolist(),
            "vocabulary": sorted(clip.tokenizer.get_vocab().items()),
        }
        return fingerprint({"clip": clip.model}, settings)

    @cached_property
    def classifier_fingerprint(self) -> str:
        """Of the judge's weights, preprocessing and labels."""
        judge = self.classifier
        settings = {
            "size": judge.image_size,
            "mean": judge.mean.flatten().tolist(),
            "std": judge.std.flatten().tolist(),
            "labels": judge.labels,
        }
        if judge.crop is not None:
            settings |= {"crop": judge.crop, "squash": judge.squash, "interpolation": judge.interpolation}
        return fingerprint({"classifier": judge}, settings)

    def check_weights(self) -> None:
        """ValueError names the first weight that is NaN or infinite, which would spoil every image or its verdict."""
        parts = {**self.model.pipeline.components, "clip": self.clip.model, "classifier": self.classifier}
        for name, part in parts.items():
            for key, weight in part.state_dict().items() if isinstance(part, nn.Module) else ():
                if weight.is_floating_point() and not weight.isfinite().all():
                    raise ValueError(
                        f"the weight {key} of the {name} is not finite in {str(weight.dtype).removeprefix('torch.')}: "
                        "replace the file, or load it in another precision."
                    )


@dataclass(kw_only=True)
class ConceptTask(ResumableRun):
    """The arguments and the preparation that experiments share; each adds its own.

    Args:
        source, concepts, buckets: where images come from, and which (see :func:`experiments.data.concepts.choose`).
        model, clip: make the text-to-image model and CLIP, given a device.
        classifier: of the judge: a folder, an id of the hub or a name of timm's.
        seed: of noise, of the choice of concepts or images and of the bootstrap.
        run_dir: where everything is written.
    """

    source: ConceptSource
    concepts: Wanted
    buckets: Buckets
    model: Callable[..., LatentDiffusion]
    clip: Callable[..., ClipFeatures]
    classifier: NonEmptyStr
    seed: RandomSeed
    run_dir: NonEmptyStr
    chosen: list[Concept] = field(init=False)
    networks: Networks = field(init=False)
    numerics: dict[str, str] = field(init=False)

    def choose_concepts(self, references: int | None = None) -> None:
        """The concepts, with the first ``references`` of their images (None: all), checked without any network.

        Raises:
            ValueError: a name, bucket or file is wrong, or a concept has fewer images.
        """
        chosen = choose(self.source.concepts(), self.concepts, self.buckets, self.seed)
        self.chosen = with_references(chosen, references)

    def load_networks(self, trainer: Trainer, steps: Sequence[int]) -> None:
        """All networks on the trainer's device, and the concepts' images at the model's size.

        ValueError names a fault, one of ``steps`` that the model has not, or images of another size.
        """
        device = trainer.strategy.root_device
        self.numerics = numerics(trainer.precision, device)
        classifier = load_classifier(self.classifier, device)
        self.networks = Networks(self.model(device=device), self.clip(device=device), classifier)
        self.networks.check_weights()
        for count in steps:
            self.networks.model.schedule(count)
        self.chosen = [concept.at(self.networks.model.image_size) for concept in self.chosen]

    def dependencies(self) -> dict[str, Any]:
        """What every unit depends on, whatever the experiment."""
        return {"checkpoint": self.networks.model_fingerprint, "numerics": self.numerics, "seed": self.seed}
