"""Metrics of edited images, computed from batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from experiments.evaluation.background_metrics import BackgroundScores, background_scores
from experiments.evaluation.classifier import Classifier
from experiments.evaluation.editing_networks import Distance
from experiments.finite import is_finite
from seedselect import ClipFeatures


@dataclass(frozen=True)
class EditingNetworks:
    """The networks with which edits are evaluated."""

    clip: ClipFeatures
    classifier: Classifier
    lpips: Distance
    structure: Distance


@dataclass(frozen=True, eq=False)
class EditBatch:
    """Edited images and what their metrics depend on. Metrics of a non-finite image are NaN, its success is 0.

    Attributes:
        images, originals: edited and source images, ``[B,3,H,W]`` in [0, 1].
        masks: bool ``[B,H,W]``, True where the image is to be edited.
        prompts: target prompts.
        labels: class that an edit to another object should show; None for other edits.
        targets: ground truth ``[3,H,W]`` of an edit to another background; None for other edits.
        min_psnr: background PSNR in dB from which the background counts as preserved.
    """

    images: Tensor
    originals: Tensor
    masks: Tensor
    prompts: Sequence[str]
    labels: Sequence[str | None]
    targets: Sequence[Tensor | None]
    networks: EditingNetworks
    min_psnr: float

    @cached_property
    def background(self) -> BackgroundScores:
        return background_scores(self.images, self.originals, self.masks)

    @cached_property
    def background_mask(self) -> Tensor:
        """Bool ``[B,1,H,W]``."""
        return (~self.masks)[:, None]

    def clip_score(self, images: Tensor) -> Tensor:
        """Cosine similarity ``[B]`` of ``images`` and the target prompts in CLIP."""
        return (self._text * self.networks.clip(images)).sum(1)

    @cached_property
    def _text(self) -> Tensor:
        return self.networks.clip.text(self.prompts)

    @cached_property
    def edit_applied(self) -> Tensor:
        return edits_applied(self)

    @cached_property
    def background_preserved(self) -> Tensor:
        """1 or 0, float64 ``[B]``; NaN for an image without background."""
        preserved = (self.background.psnr >= self.min_psnr).double()
        no_background = self.background.psnr.isnan() & is_finite(self.images).to(self.images.device)
        return torch.where(no_background, torch.nan, preserved)

    @cached_property
    def success(self) -> Tensor:
        """1 if the edit is applied and the background preserved, else 0; NaN if the first is unknown."""
        preserved = (self.background.psnr >= self.min_psnr).double()
        return torch.where(self.edit_applied.isnan(), torch.nan, self.edit_applied * preserved)


def edits_applied(batch: EditBatch) -> Tensor:
    """Whether each edit is applied, 1 or 0, float64 ``[B]``; NaN for edits without a criterion.

    An edit to another object is applied if the classifier predicts that object. An edit to another background is
    applied if the mean color of the edited region is closer to the ground truth's than to the source image's. A
    non-finite image counts as not applied.
    """
    finite = is_finite(batch.images).to(batch.images.device)
    predictions = batch.networks.classifier(batch.images.nan_to_num()).argmax(1).tolist()
    applied = [_is_applied(batch, k, prediction) for k, prediction in enumerate(predictions)]
    values = torch.tensor(applied, dtype=torch.float64, device=batch.images.device)
    return torch.where(finite | values.isnan(), values, 0.0)


def _is_applied(batch: EditBatch, k: int, prediction: int) -> float:
    target = batch.targets[k]
    if batch.labels[k] is not None:
        return float(batch.networks.classifier.labels[prediction] == batch.labels[k])
    if target is not None:
        images = (batch.images[k], batch.originals[k], target.to(batch.images))
        color, before, after = (image[:, batch.masks[k]].mean(1) for image in images)
        return float((color - after).norm() < (color - before).norm())
    return float("nan")
