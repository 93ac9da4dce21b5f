"""The interface of an experiment (:class:`Task`), and the pretrained networks of the experiments on concepts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

from lightning.pytorch import Trainer
from torch import nn

from experiments.evaluation.classifier import Classifier, load_classifier
from experiments.planning.cost import StagePlan
from experiments.runtime.device import numerics
from rnri import Inverter, LatentDiffusion, check_schedule
from rnri.models.fingerprint import fingerprint
from rnri.validation import ConfigError
from seedselect import ClipFeatures

NetworkType = TypeVar("NetworkType")

SAFE_STEP_COUNT = 50
"""A method that rejects a schedule with this many steps does not support the model."""


@runtime_checkable
class Task(Protocol):
    """The interface of an experiment. The config key ``task`` defines which experiment ``train.py`` runs.

    ``train.py`` first calls :meth:`prepare`. Then ``train.py`` calls :meth:`run`, or :meth:`plan` if ``plan=true``. The
    constructor only validates and stores its arguments. ``docs/guides/add_an_experiment.md`` shows how to add an
    experiment.
    """

    def prepare(self, trainer: Trainer) -> None:
        """Load data and networks, and check that data and networks are compatible, without writing to the run folder.

        Raises:
            ValueError: an argument is invalid; the message is one line with the config key or the file.
        """

    def plan(self, trainer: Trainer) -> list[StagePlan]:
        """Return the stages of the run, each with number of units, cost and disk space, without running the stages."""

    def run(self, trainer: Trainer) -> float | None:
        """Compute the units (pieces of work) that are not on disk yet, and write the results of the run.

        Returns:
            The value that a hyperparameter sweep over this experiment optimizes, or None if there is no such value.
        """


@dataclasses.dataclass(frozen=True)
class Networks:
    """The pretrained networks of an experiment on concepts.

    A Lightning module must not register these networks as submodules, because the networks are not trained and must not
    be saved in checkpoints.

    Attributes:
        model: the text-to-image model.
        clip: the CLIP model for SeedSelect's semantic loss and for the CLIP score; None if neither is computed.
        classifier: the evaluation classifier, never the same network as ``clip``; None if no metric needs a classifier.
        second_classifier: a second evaluation classifier, which is not related to the first; None: there is none.
        numerics: numerical settings (precision, device) on which the results depend, see
            :func:`experiments.runtime.device.numerics`.
    """

    model: LatentDiffusion
    clip: ClipFeatures | None
    classifier: Classifier | None
    second_classifier: Classifier | None = None
    numerics: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @cached_property
    def model_fingerprint(self) -> str:
        """Fingerprint of the weights and settings of the text-to-image model, which no experiment modifies."""
        return self.model.fingerprint

    @cached_property
    def clip_fingerprint(self) -> str:
        """Fingerprint of the weights, the preprocessing and the tokenizer's vocabulary of CLIP."""
        clip = _required(self.clip, "data.clip")
        settings = {
            "mean": clip.mean.flatten().tolist(),
            "std": clip.std.flatten().tolist(),
            "vocabulary": sorted(clip.tokenizer.get_vocab().items()),
        }
        return fingerprint({"clip": clip.model}, settings)

    @cached_property
    def classifier_fingerprint(self) -> str:
        """Fingerprint of the weights, the preprocessing and the labels of the evaluation classifier."""
        classifier = _required(self.classifier, "data.classifier")
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
        """Return the settings that the cache keys of all units of all experiments contain."""
        return {"checkpoint": self.model_fingerprint, "numerics": dict(self.numerics), "seed": seed}

    def check_weights(self) -> None:
        """Raise ValueError if a weight of a network is NaN or infinite.

        The message contains the name of the first such weight.
        """
        classifiers = {"classifier": self.classifier, "second classifier": self.second_classifier}
        modules = {**self.model.pipeline.components, **classifiers}
        if self.clip is not None:
            modules["clip"] = self.clip.model
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
    clip: Callable[..., ClipFeatures] | None,
    classifier: str | None,
    second_classifier: str | None = None,
) -> Networks:
    """Load the text-to-image model, CLIP and the evaluation classifier on the trainer's device.

    Args:
        steps: all numbers of sampling steps that the experiment uses; the scheduler of the model must support these
            numbers.
        model: function that loads the text-to-image model on its argument ``device``.
        clip: function that loads CLIP on its argument ``device``; None if CLIP is not needed.
        classifier: folder, Hugging Face Hub id or timm model name of the evaluation classifier; None if the classifier
            is not needed.
        second_classifier: folder, Hugging Face Hub id or timm model name of a second evaluation classifier; None: there
            is none.

    Raises:
        ValueError: a weight is NaN or infinite, or the model's scheduler does not support one of ``steps``.
    """
    device = trainer.strategy.root_device
    networks = Networks(
        classifier=None if classifier is None else load_classifier(classifier, device),
        model=model(device=device),
        clip=None if clip is None else clip(device=device),
        second_classifier=None if second_classifier is None else load_classifier(second_classifier, device),
        numerics=numerics(trainer.precision, device),
    )
    networks.check_weights()
    for count in steps:
        networks.model.schedule(count)
    return networks


def unsupported_methods(model: LatentDiffusion, methods: Mapping[str, tuple[Inverter, int]]) -> dict[str, str]:
    """Return the methods that do not support the model with any number of steps, and the reason for each.

    Args:
        model: the text-to-image model.
        methods: inversion method and number of steps of the experiment, by the name of the method.
    """
    reasons = {}
    for name, (inverter, steps) in methods.items():
        try:
            check_schedule(inverter, model.schedule(max(steps, SAFE_STEP_COUNT)))
        except ValueError as error:
            reasons[name] = str(error)
    return reasons


def check_method_steps(model: LatentDiffusion, name: str, inverter: Inverter, steps: int) -> None:
    """Raise ValueError if the inversion method ``name`` of an experiment does not support ``steps`` steps."""
    try:
        check_schedule(inverter, model.schedule(steps))
    except ValueError as error:
        raise ValueError(f"task.methods.{name} in a setting of {steps} steps: {error}") from error


def _required(network: NetworkType | None, key: str) -> NetworkType:
    """Return ``network``; raise ConfigError if it is None, because the config key ``key`` is null."""
    if network is None:
        raise ConfigError(key, "must not be null, because this experiment needs the network.")
    return network
