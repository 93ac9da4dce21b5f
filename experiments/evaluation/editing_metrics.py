"""A batch of edited images, from which the metrics of the editing experiment are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from experiments.evaluation.background_metrics import RegionScores, region_scores, ssim_map
from experiments.evaluation.classifier import Classifier
from experiments.evaluation.editing_networks import Distance
from experiments.finite import is_finite
from seedselect import ClipFeatures


@dataclass(frozen=True)
class EditingNetworks:
    """The networks with which edited images are evaluated.

    Attributes:
        clip: CLIP model for the CLIP score.
        classifier: evaluation classifier, which predicts the object in an edited image.
        lpips: perceptual distance between two images.
        structure: distance between the structures of two images.
    """

    clip: ClipFeatures
    classifier: Classifier
    lpips: Distance
    structure: Distance


@dataclass(frozen=True, eq=False)
class EditBatch:
    """Edited images, and the data and networks with which the metrics of the images are computed.

    If an edited image has NaN or infinite pixels, the metrics ``edit_applied``, ``background_preserved`` and
    ``success`` of the image are 0, and its other metrics are NaN.

    Attributes:
        images: edited images, ``[B,3,H,W]`` in [0, 1].
        originals: source images, ``[B,3,H,W]`` in [0, 1].
        masks: bool ``[B,H,W]``, True for pixels that the edit should change; the other pixels are the background.
        prompts: target prompts, one per image.
        source_prompts: prompts of the source images, one per image.
        labels: for an edit that replaces the object, the label of the new object; None for other edits.
        targets: for an edit that replaces the background, the ground-truth image ``[3,H,W]``; None for other edits.
        networks: networks that compute the metrics.
        min_psnr: threshold in dB; a background whose PSNR is at least ``min_psnr`` counts as preserved.
    """

    images: Tensor
    originals: Tensor
    masks: Tensor
    prompts: Sequence[str]
    source_prompts: Sequence[str]
    labels: Sequence[str | None]
    targets: Sequence[Tensor | None]
    networks: EditingNetworks
    min_psnr: float

    @cached_property
    def background(self) -> RegionScores:
        """Metrics of the background, which is the part of the image outside of ``masks``."""
        return region_scores(self.images, self.originals, ~self.masks, similarities=self._similarities)

    @cached_property
    def edited_region(self) -> RegionScores:
        """Metrics of the edited region, which is the part of the image inside ``masks``."""
        return region_scores(self.images, self.originals, self.masks, similarities=self._similarities)

    @cached_property
    def _similarities(self) -> Tensor:
        return ssim_map(self.images, self.originals)

    @property
    def clip_score(self) -> Tensor:
        """Cosine similarity ``[B]`` between the CLIP features of the edited images and of their target prompts."""
        return self._clip_score(self.images)

    @property
    def clip_score_region(self) -> Tensor:
        """CLIP score ``[B]`` of the edited images with their background set to black.

        The CLIP score is NaN for an image without a region to edit.
        """
        return self._nan_if_empty(self.masks, self._clip_score(self.images * self.masks[:, None]))

    @property
    def clip_score_source(self) -> Tensor:
        """Cosine similarity ``[B]`` between the CLIP features of the source images and of their prompts."""
        return (self.networks.clip.text(self.source_prompts) * self.networks.clip(self.originals)).sum(1)

    def _clip_score(self, images: Tensor) -> Tensor:
        return (self._text * self.networks.clip(images)).sum(1)

    @cached_property
    def _text(self) -> Tensor:
        return self.networks.clip.text(self.prompts)

    def background_distance(self, distance: Callable[[Tensor, Tensor], Tensor] | None) -> Tensor | None:
        """Return the distance ``[B]`` between the backgrounds of source and edited images.

        As in PIE-Bench, the region to edit is set to black in both images. The distance is NaN for an image without
        background. If ``distance`` is None, return None.
        """
        return distance and self._masked_distance(distance, ~self.masks)

    def region_distance(self, distance: Callable[[Tensor, Tensor], Tensor] | None) -> Tensor | None:
        """Return the distance ``[B]`` between the edited regions of source and edited images.

        As in PIE-Bench, the background is set to black in both images. The distance is NaN for an image without a
        region to edit. If ``distance`` is None, return None.
        """
        return distance and self._masked_distance(distance, self.masks)

    def _masked_distance(self, distance: Callable[[Tensor, Tensor], Tensor], regions: Tensor) -> Tensor:
        distances = distance(self.images * regions[:, None], self.originals * regions[:, None])
        return self._nan_if_empty(regions, distances)

    @staticmethod
    def _nan_if_empty(regions: Tensor, values: Tensor) -> Tensor:
        return torch.where(regions.flatten(1).any(1).to(values.device), values, torch.nan)

    @cached_property
    def edit_applied(self) -> Tensor:
        """Whether each edit is applied, float64 ``[B]``, see :func:`edits_applied`."""
        return edits_applied(self)

    @cached_property
    def background_preserved(self) -> Tensor:
        """Whether the background of each image is preserved, float64 ``[B]``: 1 if it is preserved, else 0.

        The background is preserved if its PSNR is at least ``min_psnr``. The value is NaN for an image without
        background pixels.
        """
        preserved = (self.background.psnr >= self.min_psnr).double()
        no_background = self.background.psnr.isnan() & is_finite(self.images).to(self.images.device)
        return torch.where(no_background, torch.nan, preserved)

    @cached_property
    def success(self) -> Tensor:
        """Whether each edit succeeded, float64 ``[B]``: 1 if it is applied and the background is preserved, else 0.

        The value is NaN for an edit if :func:`edits_applied` cannot decide whether the edit is applied.
        """
        preserved = (self.background.psnr >= self.min_psnr).double()
        return torch.where(self.edit_applied.isnan(), torch.nan, self.edit_applied * preserved)


def edits_applied(batch: EditBatch) -> Tensor:
    """Return, for each edit, 1 if it is applied, 0 if it is not, and NaN if there is no criterion, float64 ``[B]``.

    An edit that replaces the object is applied if the classifier predicts the new object. An edit that replaces the
    background is applied if the mean color of the edited region is nearer to the mean color in the ground-truth image
    than to the mean color in the source image. An edit whose image has NaN or infinite pixels counts as failed.
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
