"""What the metrics of reconstructed images are computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from experiments.evaluation.classifier import Classifier
from seedselect import ClipFeatures


@dataclass(frozen=True, eq=False)
class ReconstructionBatch:
    """Reconstructed images, ``[B,3,H,W]`` in [0, 1].

    Attributes:
        images, originals: reconstructed and original images.
        prompts: under which the images were sampled.
        st_lpips: computes ST-LPIPS; None without its weights.
    """

    images: Tensor
    originals: Tensor
    prompts: Sequence[str]
    clip: ClipFeatures
    classifier: Classifier
    st_lpips: Callable[[Tensor, Tensor], Tensor] | None = None

    def clip_score(self) -> Tensor:
        """Cosine similarity ``[B]`` of images and prompts in CLIP."""
        return (self.clip.text(list(self.prompts)) * self.clip(self.images)).sum(1)
