"""A batch of reconstructed images, from which the metrics of the inversion experiment are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from experiments.evaluation.classifier import Classifier
from experiments.evaluation.metrics import perceptual_distance
from seedselect import ClipFeatures


@dataclass(frozen=True, eq=False)
class ReconstructionBatch:
    """Reconstructed images, and the data and networks with which the metrics of the images are computed.

    Attributes:
        images: reconstructed images, ``[B,3,H,W]`` in [0, 1].
        originals: original images, ``[B,3,H,W]`` in [0, 1].
        prompts: prompt with which each image was inverted and reconstructed.
        clip: CLIP model for the CLIP score; None if the CLIP score is not computed.
        classifier: classifier whose features are used for the perceptual distance; None if the perceptual distance is
            not computed.
        st_lpips: function that computes ST-LPIPS between two batches of images; None if ST-LPIPS is not computed.
    """

    images: Tensor
    originals: Tensor
    prompts: Sequence[str]
    clip: ClipFeatures | None
    classifier: Classifier | None
    st_lpips: Callable[[Tensor, Tensor], Tensor] | None = None

    def clip_score(self) -> Tensor | None:
        """Return the cosine similarity ``[B]`` between the CLIP features of reconstructed images and their prompts."""
        if self.clip is None:
            return None
        return (self.clip.text(list(self.prompts)) * self.clip(self.images)).sum(1)

    def perceptual_distance(self) -> Tensor | None:
        """Return the perceptual distance ``[B]`` between the reconstructed and the original images."""
        if self.classifier is None:
            return None
        return perceptual_distance(self.classifier, self.images, self.originals)
