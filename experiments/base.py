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

    ``train.py`` first calls :meth:`prepare`. Then it calls :meth:`run`, or :meth:`plan` if ``plan=true``. The
    constructor only validates and stores its arguments. ``docs/guides/add_an_experiment.md`` shows how to add an
    experiment.
    """

    def prepare(self, trainer: Trainer) -> None:
        """Load data and networks and check that they are compatible, without writing to the run folder.

        Raises:
            ValueError: an argument is invalid; the message is one line that names the config key or the file.
        """

    def plan(self, trainer: Trainer) -> list[StagePlan]:
        """Return the stages of the run with their number of units, cost and disk space, without running them."""

    def run(self, trainer: Trainer) -> float | None:
        """Compute the units that are not on disk yet, and write the results of the run.

        Returns:
            The value that a hyperparameter sweep over this experiment optimizes, or None if it optimizes none.
        """


@dataclasses.dataclass(frozen=True)
class Networks:
    """The pretrained networks of an experiment on concepts.

    A Lightning module must not register these networks as submodules, because they are not trained and must not be
    saved in checkpoints.

    Attributes:
        model: the text-to-image model.
        clip: the CLIP model that computes SeedSelect's semantic loss and the CLIP score.
        classifier: the evaluation classifier. It is never the same network as ``clip``.
        numerics: numerical settings (precision, device) on which results depend
            (:func:`experiments.runtime.device.numerics`).
    """

    model: LatentDiffusion
    clip: ClipFeatures
    classifier: Classifier
    numerics: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @cached_property
    def model_fingerprint(self) -> str:
        """Fingerprint of the weights and settings of the text-to-image model, which no experiment modifies."""
        return self.model.fingerprint

    @cached_property
    def clip_fingerprint(self) -> str:
        """Fingerprint of the weights, the preprocessing and the tokenizer's vocabulary of CLIP."""
        clip = self.clip
        settings = {
            "mean": clip.mean.flatten().tolist(),
            "std": clip.std.flatten().tolist(),
            "vocabulary": sorted(clip.tokenizer.get_vocab().items()),
        }
        return fingerprint({"clip": clip.model}, settings)

    @cached_property
    def classifier_fingerprint(self) -> str:
        """Fingerprint of the weights, the preprocessing and the labels of the evaluation classifier."""
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
        """Return the settings that are in the cache key of every unit, in all experiments."""
        return {"checkpoint": self.model_fingerprint, "numerics": dict(self.numerics), "seed": seed}

    def check_weights(self) -> None:
        """Raise ValueError if a weight of a network is NaN or infinite; the message names the first such weight."""
        modules = {**self.model.pipeline.components, "clip": self.clip.model, "classifier": self.classifier}
        for name, module in modules.items():
            for key, weight in module.state_dict().items() if isinstance(module, nn.Module) else ():
                if weight.is_floating_point() and not weight.isfinite().all():
                    raise ValueError(
                        f"the weight {key} of the {name} is not finite in {str(weight.dtype).removeprefix('torch.')}: "
                        "replace the weight file, or load it in another precision."
                    )


def load_networks(
    trainer: Trainer,
    steps: Sequence[int],
    *,
    model: Callable[..., LatentDiffusion],
    clip: Callable[..., ClipFeatures],
    classifier: str,
) -> Networks:
    """Load the text-to-image model, CLIP and the evaluation classifier on the trainer's device.

    Args:
        steps: all numbers of sampling steps that the experiment uses; the scheduler of the model must support them.
        model: function that loads the text-to-image model on its argument ``device``.
        clip: function that loads CLIP on its argument ``device``.
        classifier: folder, Hugging Face Hub id or timm model name of the evaluation classifier.

    Raises:
        ValueError: a weight is NaN or infinite, or the model's scheduler does not support one of ``steps``.
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
