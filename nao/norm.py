"""Norms of seeds. The norm of a standard Gaussian seed of `d` components has the chi distribution with density chi_d.

In NAO's path energy, a unit of length costs `-log chi_d(norm)`. The typical norm is the norm where the density is
highest. The log-density is the sum of a term that is 0 at the typical norm and of a constant. Minus the constant is the
cost of a unit of length at the typical norm; without the constant, a path at the typical norm would cost nothing. The
cost is positive for every `d`, because the density is always below 1: the maximum of the density is 0.80 for d = 1 and
decreases to 1/sqrt(pi) = 0.564 for large d. The cost of a unit of length at the typical norm is 0.5 for d = 2, 0.571
for d = 64 and 0.572 for d >= 256.

Direct evaluation of the log-density loses precision: for d = 16,384, terms with magnitudes near 8e4 add up to -0.57.
Therefore the constant is computed separately in float64, and the other term is computed from the ratio of the norm to
the typical norm.

Seeds have the shape [..., C, h, w], norms have the shape [...], and `d` = C*h*w. Norms and densities are float64 on the
CPU, because some devices (MPS) do not support float64. Returned seeds are on the device of the input seeds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def typical_norm(d: int) -> float:
    """Return the most likely norm of a standard Gaussian seed of `d` components, sqrt(d - 1)."""
    if d < 2:
        raise ValueError(f"d={d}: a seed must have >= 2 components, so that its typical norm is positive.")
    return math.sqrt(d - 1)


def peak_log_density(d: int) -> float:
    """Return the maximum of log chi_d(norm) over all norms, the constant term of `log_density`.

    chi_d is the density of the norm of a standard Gaussian seed of `d` components (chi distribution). The maximum of
    log chi_d is negative for every d.
    """
    mode = typical_norm(d)
    return (1 - d / 2) * math.log(2) - math.lgamma(d / 2) + (d - 1) * math.log(mode) - mode**2 / 2


def relative_log_density(norm: Tensor, d: int) -> Tensor:
    """Return log chi_d(norm) - log chi_d(mode) in float64, which is 0 at the mode, negative elsewhere, and -inf at 0.

    chi_d is the density of the chi distribution, and mode is the norm at which chi_d is highest (`typical_norm`). The
    difference is computed as (d-1) (log(1+x) - x - x^2/2) with x = norm/mode - 1. This formula is accurate near the
    mode.
    """
    x = norm.cpu().double() / typical_norm(d) - 1
    return (d - 1) * (torch.log1p(x) - x - x.square() / 2)


def log_density(norm: Tensor, d: int) -> Tensor:
    """Return the log-density of the chi distribution with `d` degrees of freedom at `norm`, in float64.

    Minus the log-density is the cost of a unit of length in NAO's path energy.
    """
    return relative_log_density(norm, d) + peak_log_density(d)


def check_seeds(seeds: Tensor, name: str = "seeds", shape: str = "[...,C,h,w]") -> None:
    """Check the type and the shape of seeds.

    Args:
        seeds: the value to check.
        name: name of the argument, for the error message.
        shape: expected shape; ``...`` stands for any number of leading dimensions.

    Raises:
        ValueError: ``seeds`` is not a floating-point tensor of the expected shape, or has no element.
    """
    if not isinstance(seeds, Tensor):
        raise ValueError(f"{name}: must be a tensor {shape}, got {type(seeds).__name__}; pass a torch.Tensor.")
    if not seeds.is_floating_point():
        raise ValueError(f"{name}: must have a floating-point dtype, got {seeds.dtype}; convert with {name}.float().")
    dimensions = shape.strip("[]").split(",")
    minimum = len(dimensions) - ("..." in dimensions)
    if seeds.ndim < minimum or ("..." not in dimensions and seeds.ndim > minimum):
        raise ValueError(f"{name}: must have the shape {shape}, got {list(seeds.shape)}; add or remove dimensions.")
    if not seeds.numel():
        raise ValueError(f"{name}: must have the shape {shape}, got {list(seeds.shape)}; pass at least one seed.")


def check_ends(a: Tensor, b: Tensor, shape: str = "[...,C,h,w]") -> None:
    """Raise ValueError if the ends ``a`` and ``b`` of a path are not seeds of the same shape (:func:`check_seeds`)."""
    check_seeds(a, "a", shape)
    check_seeds(b, "b", shape)
    if a.shape != b.shape:
        raise ValueError(
            f"a and b: must have the same shape, got {list(a.shape)} and {list(b.shape)}; use seeds of one model."
        )


def seed_norm(seeds: Tensor) -> Tensor:
    """Return the Euclidean norms [...] of the seeds [..., C, h, w], in float64 on the CPU."""
    return seeds.cpu().double().flatten(-3).norm(dim=-1)


def norm_penalty(seeds: Tensor) -> Tensor:
    """Return the penalties log chi_d(mode) - log chi_d(norm) of the seeds [B,C,h,w], in nats, as a tensor [B].

    chi_d is the density of the norm of a standard Gaussian seed with d components, and mode is the typical norm, at
    which chi_d is highest. The penalty is 0 at the typical norm and positive elsewhere. The penalty is differentiable,
    and has the dtype and device of the seeds. `SeedSelect.penalty` can be set to this function, so that SeedSelect adds
    the penalty to its loss.
    """
    return -relative_log_density(seed_norm(seeds), seeds[0].numel()).to(seeds.dtype).to(seeds.device)


def project(seeds: Tensor, norm: float | None = None) -> Tensor:
    """Return the seeds [..., C, h, w] rescaled to `norm`, in the dtype of the seeds; None means the typical norm.

    Raises:
        ValueError: a seed is zero or not finite, or ``norm`` is not a finite number above 0.
    """
    if norm is not None and not 0 < norm < math.inf:
        raise ValueError(f"norm: must be a finite number > 0, got {norm}; pass None for the typical norm.")
    lengths = check_norms(seeds)
    target = typical_norm(math.prod(seeds.shape[-3:])) if norm is None else norm
    scaled = seeds.cpu().double() * (target / lengths)[..., None, None, None]
    return scaled.to(seeds.dtype).to(seeds.device)


def check_norms(seeds: Tensor, name: str = "seeds") -> Tensor:
    """Return the norms of `seeds` [..., C, h, w]; raise ValueError if a norm is zero, infinite or NaN."""
    check_seeds(seeds, name)
    norms = seed_norm(seeds)
    is_invalid = ~(torch.isfinite(norms) & (norms > 0))
    if is_invalid.any():
        index = int(is_invalid.flatten().nonzero()[0].item())
        value = norms.flatten()[index].item()
        raise ValueError(
            f"{name}: seed {index} has norm {value:g}, so it has no direction; remove this seed, or invert its image "
            "again."
        )
    return norms
