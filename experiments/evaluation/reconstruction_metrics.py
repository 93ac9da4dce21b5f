"""A batch of reconstructed images, from which the metrics of the inversion experiment are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from experiments.evaluation.classifier import Classifier
from seedselect import ClipFeatures


@dataclass(frozen=True, eq=False)
class ReconstructionBatch:
    """Reconstructed images, and the data and networks with which their metrics are computed.

    Attributes:
        images: reconstructed images, ``[B,3,H,W]`` in [0, 1].
        originals: original images, ``[B,3,H,W]`` in [0, 1].
        prompts: prompt of each image, with which the image was inverted and reconstructed.
        clip: CLIP model for the CLIP score.
        classifier: classifier whose features the perceptual distance uses.
        st_lpips: function that computes the ST-LPIPS of two batches; None if its weights are not available.
    """

    images: Tensor
    originals: Tensor
    prompts: Sequence[str]
    clip: ClipFeatures
    classifier: Classifier
    st_lpips: Callable[[Tensor, Tensor], Tensor] | None = None

    def clip_score(self) -> Tensor:
        """Return the cosine similarity ``[B]`` of the CLIP features of the reconstructed images and of the prompts."""
        return (self.clip.text(list(self.prompts)) * self.clip(self.images)).sum(1)
