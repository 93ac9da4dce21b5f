"""The interface of an experiment (:class:`Task`), and the networks that the experiments on concepts share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer
from torch import nn

from experiments.evaluation.classifier import Classifier, load_classifier
from experiments.planning.cost import StagePlan
from experiments.runtime.device import numerics
from rnri import LatentDiffusion
from rnri.models.fingerprint import fingerprint
from seedselect import ClipFeatures


@runtime_checkable
class Task(Protocol):
    """An experiment: the object that the key ``task`` of a configuration instantiates.

    ``train.py`` calls :meth:`prepare`, and then :meth:`run`, or :meth:`plan` with ``plan=true``. The constructor only
    checks and stores its arguments. ``docs/guides/add_an_experiment.md`` adds one.
    """

    def prepare(self, trainer: Trainer) -> None:
        """Load data and networks, and check that they fit together. Nothing is written to the run folder.

        Raises:
            ValueError: an argument is wrong; the message is one line that names the key or the file.
        """

    def plan(self, trainer: Trainer) -> list[StagePlan]:
        """Return the stages of the run with their number of units, cost and disk space. Nothing is computed."""

    def run(self, trainer: Trainer) -> float | None:
        """Compute what is not on disk yet and write the results.

        Returns the value that a sweep over this experiment optimizes, if there is one.
        """


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks of an experiment on concepts.

    A Lightning module must not register them as submodules: they are not trained and belong to no checkpoint.

    Attributes:
        model: the text-to-image model.
        clip: the features of SeedSelect's semantic loss and of the CLIP score.
        classifier: the evaluation classifier. It is never the network of ``clip``.
        numerics: precision and device that results depend on (:func:`experiments.runtime.device.numerics`).
    """

    model: LatentDiffusion
    clip: ClipFeatures
    classifier: Classifier
    numerics: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @cached_property
    def model_fingerprint(self) -> str:
        """Fingerprint of the text-to-image model, which no experiment modifies."""
        return self.model.fingerprint

    @cached_property
    def clip_fingerprint(self) -> str:
        """Fingerprint of CLIP's weights, preprocessing and vocabulary."""
        clip = self.clip
        settings = {
            "mean": clip.mean.flatten().tolist(),
            "std": clip.std.flatten().tolist(),
            "vocabulary": sorted(clip.tokenizer.get_vocab().items()),
        }
        return fingerprint({"clip": clip.model}, settings)

    @cached_property
    def classifier_fingerprint(self) -> str:
        """Fingerprint of the evaluation classifier's weights, preprocessing and labels."""
        classifier = self.classifier
        settings = {
            "size": classifier.image_size,
            "mean": classifier.mean.flatten().tolist(),
            "std": classifier.std.flatten().tolist(),
            "labels": classifier.labels,
        }
        preprocessing = classifier.preprocessing
        if preprocessing.crop is not None:
            settings |= {
                "crop": preprocessing.crop,
                "squash": preprocessing.squash,
                "interpolation": preprocessing.interpolation,
            }
        return fingerprint({"classifier": classifier}, settings)

    def cache_settings(self, seed: int) -> dict[str, Any]:
        """Return the part of a unit's cache key that all experiments share."""
        return {"checkpoint": self.model_fingerprint, "numerics": dict(self.numerics), "seed": seed}

    def check_weights(self) -> None:
        """Raise ValueError with the name of the first weight that is NaN or infinite."""
        modules = {**self.model.pipeline.components, "clip": self.clip.model, "classifier": self.classifier}
        for name, module in modules.items():
            for key, weight in module.state_dict().items() if isinstance(module, nn.Module) else ():
                if weight.is_floating_point() and not weight.isfinite().all():
                    raise ValueError(
                        f"the weight {key} of the {name} is not finite in {str(weight.dtype).removeprefix('torch.')}: "
                        "replace the file, or load it in another precision."
                    )


def load_networks(
    trainer: Trainer,
    steps: Sequence[int],
    *,
    model: Callable[..., LatentDiffusion],
    clip: Callable[..., ClipFeatures],
    classifier: str,
) -> Networks:
    """Load all networks on the trainer's device.

    Args:
        steps: numbers of sampling steps that the model has to support.
        model, clip: create the text-to-image model and CLIP, given ``device``.
        classifier: folder, hub id or timm name of the evaluation classifier.

    Raises:
        ValueError: a weight is not finite, or the model's scheduler does not support one of ``steps``.
    """
    device = trainer.strategy.root_device
    evaluation_classifier = load_classifier(classifier, device)
    networks = Networks(
        model(device=device), clip(device=device), evaluation_classifier, numerics(trainer.precision, device)
    )
    networks.check_weights()
    for count in steps:
        networks.model.schedule(count)
    return networks
