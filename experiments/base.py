"""The interface of an experiment (:class:`Task`), and the pretrained networks that experiments load."""

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
"""Minimum number of sampling steps with which :func:`unsupported_methods` tests inversion methods."""


@runtime_checkable
class Task(Protocol):
    """The interface of an experiment. The config key ``task`` defines which experiment ``train.py`` runs.

    ``train.py`` first calls :meth:`prepare`. Then ``train.py`` calls :meth:`run`, or :meth:`plan` if ``plan=true``. The
    constructor of an experiment only validates and stores its arguments. ``docs/guides/add_an_experiment.md`` shows how
    to add an experiment.
    """

    def prepare(self, trainer: Trainer) -> None:
        """Load data and networks, and check that they are compatible. This method does not write to the run folder.

        Raises:
            ValueError: an argument is invalid; the one-line message contains the config key or the file.
        """

    def plan(self, trainer: Trainer) -> list[StagePlan]:
        """Return the estimated cost and disk space of each stage of the run, such as the generation of the images.

        This method does not run the stages.
        """

    def run(self, trainer: Trainer) -> float | None:
        """Compute the units of the run that are not on disk yet, and write the results of the run.

        A unit is the smallest piece of work that a resumed run can skip, for example the images of one concept.

        Returns:
            The value that a hyperparameter sweep over this experiment optimizes, or None if the experiment has no such
            value.
        """


@dataclasses.dataclass(frozen=True)
class Networks:
    """The pretrained networks of an experiment.

    A Lightning module must not register the networks as submodules, because a registered network would be saved in
    checkpoints.

    Attributes:
        model: the text-to-image model.
        clip: the CLIP model for SeedSelect's semantic loss and for the CLIP score; None if the experiment computes
            neither the loss nor the score.
        classifier: the classifier that evaluates generated images, never the same network as ``clip``; None if no
            metric needs a classifier.
        second_classifier: a second classifier that evaluates generated images, of a different kind than ``classifier``;
            None if the experiment uses only one classifier.
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
        """Fingerprint of the weights and settings of the text-to-image model."""
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
        """Return the part of the cache key that all stored results have in common.

        The returned dict contains the fingerprint of the text-to-image model, the numerical settings (precision,
        device) and the random seed ``seed``.
        """
        return {"checkpoint": self.model_fingerprint, "numerics": dict(self.numerics), "seed": seed}

    def check_weights(self) -> None:
        """Raise ValueError if a weight of a network is NaN or infinite; the message names the first such weight."""
        classifiers = {"classifier": self.classifier, "second classifier": self.second_classifier}
        modules = {**self.model.pipeline.components, **classifiers}
        if self.clip is not None:
            modules["clip"] = self.clip.model
        for name, module in modules.items():
            for key, weight in module.state_dict().items() if isinstance(module, nn.Module) else ():
                if weight.is_floating_point() and not weight.isfinite().all():
                    raise ValueError(
                        f"the weight {key} of the {name} is not finite in {str(weight.dtype).removeprefix('torch.')}: "
                        "replace the weight file, or load the weights in another precision."
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
        trainer: trainer whose device and precision the networks use.
        steps: all numbers of sampling steps that the experiment uses, which the scheduler of the model must support.
        model: function that loads the text-to-image model on the device ``device``.
        clip: function that loads CLIP on the device ``device``; None if CLIP is not needed.
        classifier: folder, Hugging Face Hub id or timm model name of the evaluation classifier; None if no classifier
            is needed.
        second_classifier: folder, Hugging Face Hub id or timm model name of a second evaluation classifier; None if one
            classifier is enough.

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
    """Return a dict that maps the name of each inversion method that does not support the model to the reason.

    Args:
        model: the text-to-image model.
        methods: the inversion methods by name, each with its number of sampling steps. If the number is smaller than
            ``SAFE_STEP_COUNT``, the method is tested with ``SAFE_STEP_COUNT`` steps. Therefore a method that supports
            the model, but needs more steps, is not returned.
    """
    reasons = {}
    for name, (inverter, steps) in methods.items():
        try:
            check_schedule(inverter, model.schedule(max(steps, SAFE_STEP_COUNT)))
        except ValueError as error:
            reasons[name] = str(error)
    return reasons


def check_method_steps(model: LatentDiffusion, name: str, inverter: Inverter, steps: int) -> None:
    """Raise ValueError if the inversion method ``inverter`` does not support the model with ``steps`` steps."""
    try:
        check_schedule(inverter, model.schedule(steps))
    except ValueError as error:
        raise ValueError(f"task.methods.{name} with {steps} sampling steps: {error}") from error


def _required(network: NetworkType | None, key: str) -> NetworkType:
    """Return ``network``; raise ConfigError if ``network`` is None, which means that the config key ``key`` is null."""
    if network is None:
        raise ConfigError(
            key, "must not be null, because this experiment needs the network; set it to a folder or Hub id."
        )
    return network
