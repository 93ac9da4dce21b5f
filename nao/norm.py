"""The norm of a seed: a standard Gaussian of `d` components has a chi-distributed norm with `d` degrees of freedom.

NAO's path energy multiplies length by `-log chi_d(norm)`. The additive constant of the log-density is therefore the
cost of a unit of length at the typical norm and must not be dropped: length would be free. The density of chi_d never
exceeds 0.80 (d = 1) and its peak tends to 1/sqrt(pi) = 0.564 from above, so the cost is positive for every `d`: 0.5 at
d = 2, 0.571 at d = 64, 0.572 for d >= 256.

Evaluated directly, terms near 8e4 cancel to -0.57 at d = 16,384. Here the part that depends on the norm is written
relative to the mode, and the constant is computed once, in double precision.

Shapes: seeds [..., C, h, w]; norms [...]; `d` = C*h*w. Norms and densities are float64 on the CPU, because some devices
(MPS) have no float64. Seeds stay on their device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def typical_norm(d: int) -> float:
    """Return the mode of the norm of a standard Gaussian seed of `d` components, sqrt(d - 1)."""
    if d < 2:
        raise ValueError(f"d={d}: must be >= 2 components, so that the norm has a positive mode.")
    return math.sqrt(d - 1)


def peak_log_density(d: int) -> float:
    """Return log chi_d at its mode, the constant term of `log_density`. It is negative for every d."""
    mode = typical_norm(d)
    return (1 - d / 2) * math.log(2) - math.lgamma(d / 2) + (d - 1) * math.log(mode) - mode**2 / 2


def relative_log_density(norm: Tensor, d: int) -> Tensor:
    """Return log chi_d(norm) - log chi_d(mode) in float64: 0 at the mode, negative elsewhere, -inf at zero.

    With x = norm/mode - 1 it is (d-1) (log(1+x) - x - x^2/2), which is accurate near the mode.
    """
    x = norm.cpu().double() / typical_norm(d) - 1
    return (d - 1) * (torch.log1p(x) - x - x.square() / 2)


def log_density(norm: Tensor, d: int) -> Tensor:
    """Return the normalized log-density log chi_d(norm) in float64, as used in NAO's energy."""
    return relative_log_density(norm, d) + peak_log_density(d)


def seed_norm(seeds: Tensor) -> Tensor:
    """Return the float64 Euclidean norm of each seed [..., C, h, w] -> [...]."""
    return seeds.cpu().double().flatten(-3).norm(dim=-1)


def norm_penalty(seeds: Tensor) -> Tensor:
    """Return log chi_d(mode) - log chi_d(norm) of each seed [B,C,h,w] -> [B], in nats; 0 at the typical norm.

    Differentiable, in the dtype and on the device of the seeds. SeedSelect can use it as a penalty.
    """
    return -relative_log_density(seed_norm(seeds), seeds[0].numel()).to(seeds.dtype).to(seeds.device)


def project(seeds: Tensor, norm: float | None = None) -> Tensor:
    """Return the seeds [..., C, h, w] rescaled to `norm` (default: the typical norm), in their dtype.

    Raises ValueError if a seed is zero or not finite.
    """
    lengths = check_norms(seeds)
    target = typical_norm(math.prod(seeds.shape[-3:])) if norm is None else norm
    scaled = seeds.cpu().double() * (target / lengths)[..., None, None, None]
    return scaled.to(seeds.dtype).to(seeds.device)


def check_norms(seeds: Tensor, name: str = "seeds") -> Tensor:
    """Return the norms of `seeds` [..., C, h, w]; raise ValueError if one is zero, infinite or NaN."""
    norms = seed_norm(seeds)
    is_invalid = ~(torch.isfinite(norms) & (norms > 0))
    if is_invalid.any():
        index = is_invalid.flatten().nonzero()[0].item()
        value = norms.flatten()[index].item()
        raise ValueError(
            f"{name}: seed {index} has norm {value:g}, so it has no direction; remove it or invert its image again"
        )
    return norms
