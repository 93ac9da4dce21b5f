"""What is measured of an edited image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from experiments.editing.benchmark import KINDS, BenchmarkEdit
from experiments.evaluation import Classifier
from experiments.evaluation.background_metrics import background_scores
from experiments.evaluation.editing_networks import Distance
from experiments.naming import normalize_name
from experiments.finite import is_finite
from seedselect import ClipFeatures

OBJECT, BACKGROUND = KINDS.index("change object"), KINDS.index("change background")


@dataclass(frozen=True)
class Networks:
    """The networks that score."""

    clip: ClipFeatures
    judge: Classifier
    lpips: Distance
    structure: Distance


def measures(
    images: Tensor, originals: Tensor, edits: Sequence[BenchmarkEdit], networks: Networks, min_psnr: float
) -> dict[str, Tensor]:
    """Columns ``[B]`` of ``images`` edited from ``originals``, ``[B,3,H,W]`` in [0, 1].

    An image that is not finite has NaN for all, and no success. ``background_lpips`` is by PIE-Bench's definition, of
    images multiplied by ``1 - mask``, as are ``original_*``; the other figures of the background are over it alone.

    Args:
        min_psnr: background PSNR in dB from which on the background counts as kept.
    """
    size = tuple(images.shape[-2:])
    masks = torch.stack([edit.mask_at(size) for edit in edits]).to(images.device)
    outside, text = (~masks)[:, None], networks.clip.text([edit.target for edit in edits])
    background = asdict(background_scores(images, originals, masks))
    kept = (background["psnr"] >= min_psnr).double()
    empty = background["psnr"].isnan() & is_finite(images).to(images.device)
    made = edits_applied(images, originals, masks, edits, networks.judge)
    names = {"psnr": "background_psnr", "mse": "background_mse", "ssim": "background_ssim"}
    return {
        "clip_score": (text * networks.clip(images)).sum(1),
        "clip_score_region": (text * networks.clip(images * masks[:, None])).sum(1),
        "lpips": networks.lpips(images, originals),
        "structure": networks.structure(images, originals),
        **{names.get(name, name): values for name, values in background.items()},
        "background_lpips": networks.lpips(images * outside, originals * outside),
        "made": made,
        "kept": torch.where(empty, torch.nan, kept),
        "success": torch.where(made.isnan(), torch.nan, made * kept),
    }  # fmt: skip


def edits_applied(
    images: Tensor, originals: Tensor, masks: Tensor, edits: Sequence[BenchmarkEdit], judge: Classifier
) -> Tensor:
    """Whether each edit is made, 1 or 0, float64 ``[B]``; NaN where the benchmark does not tell.

    An edit to another object is made if the judge names the new one; one to another background if the mean color of
    the edited region is nearer to that of the true edit than to the image's. An image that is not finite is not made.
    """
    finite = is_finite(images).to(images.device)
    found = judge(images.nan_to_num()).argmax(1).tolist()
    made = [
        _made(edit, judge.labels[label], image, original, mask)
        for edit, label, image, original, mask in zip(edits, found, images, originals, masks, strict=True)
    ]
    verdicts = torch.tensor(made, dtype=torch.float64, device=images.device)
    return torch.where(finite | verdicts.isnan(), verdicts, 0.0)


def _made(edit: BenchmarkEdit, named: str, image: Tensor, original: Tensor, mask: Tensor) -> float:
    if edit.kind == OBJECT and edit.concept is not None:
        return float(named == normalize_name(edit.concept))
    if edit.kind == BACKGROUND and edit.target_image is not None:
        wanted = edit.picture(tuple(image.shape[-2:]), target=True).to(image)
        color, before, after = (each[:, mask].mean(1) for each in (image, original, wanted))
        return float((color - after).norm() < (color - before).norm())
    return float("nan")


def check_labels(edits: Sequence[BenchmarkEdit], judge: Classifier) -> None:
    """ValueError where the judge could never name what an edit should show."""
    known = set(judge.labels)
    for edit in edits:
        if edit.kind == OBJECT and edit.concept is not None and normalize_name(edit.concept) not in known:
            raise ValueError(
                f"the judge knows no {edit.concept!r}, which edit {edit.key} should show: give task.classifier a judge "
                "of the benchmark's concepts."
            )
