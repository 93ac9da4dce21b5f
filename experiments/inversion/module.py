"""The Lightning module that inverts images, reconstructs images from the seeds and computes metrics."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from experiments.base import Networks
from experiments.cache.store import UnitStore
from experiments.evaluation.lpips import ShiftTolerantLpips
from experiments.evaluation.reconstruction_metrics import ReconstructionBatch
from experiments.evaluation.registry import INVERSION
from experiments.evaluation.seed_statistics import area_errors, normality, patch_correlation, plain_areas, straightness
from experiments.finite import NonFiniteError, is_finite, mask_nonfinite
from experiments.inversion.figures import images_to_save
from experiments.inversion.jobs import InversionJob, unit_name
from experiments.runtime.device import synchronize
from rnri import DecoderInversion, with_measured_residuals
from rnri.inversion import NFE_PER_BACKWARD

MAX_SAVED_IMAGES = 8  # maximum number of images that are saved per method and setting
MAX_CACHED_BATCHES = 32  # maximum number of batches whose latents are kept in memory for the next methods
SOLVED_TOLERANCE = 1e-4
"""An inversion step counts as solved if its residual is at most this value, as in appendix G of the RNRI paper."""
SIGNIFICANCE = 0.05
"""The hypothesis that a seed is standard normal noise is rejected if its p-value is below this value."""


class InversionModule(LightningModule):
    """Inverts and reconstructs the images of a job, computes the metrics, and stores the metrics on disk.

    Args:
        networks: the text-to-image model and the networks that compute metrics.
        units: dict from :func:`experiments.inversion.jobs.unit_name` of a job to the store (folder) for the results of
            the job.
        noise_seed: random seed of the noise from which images are generated.
        lpips: network that computes ST-LPIPS; None if ST-LPIPS is not computed.
    """

    def __init__(
        self,
        networks: Networks,
        units: Mapping[str, UnitStore],
        noise_seed: int,
        *,
        lpips: ShiftTolerantLpips | None = None,
    ) -> None:
        super().__init__()
        self.networks = networks
        self.units = units
        self.noise_seed = noise_seed
        self.lpips = lpips
        self._cache: OrderedDict[tuple, tuple[Tensor, Tensor | None]] = OrderedDict()

    def predict_step(self, job: InversionJob, _: int) -> str:
        """Invert and reconstruct the images of a job, compute the metrics, and store the results.

        Returns the label of the job.

        If an image or its latent has NaN or infinite values, the metrics of the image are NaN and figures do not show
        the image. The column ``not_finite`` counts reconstructions with NaN or infinite values.

        Raises:
            NonFiniteError: the VAE's reconstructions of all images of the first batch contain NaN or infinity, so that
                no inversion method can reconstruct the images.
        """
        captions = [image.prompt for image in job.images]
        images, z0, true_latents = self._images_and_latents(job, captions)
        if job.inverter is None:
            inverted = z = z0
            columns: dict[str, Tensor] = {}
        else:
            inverted, z, columns = self._invert(job, z0, captions)
        with torch.no_grad():
            reconstructions = mask_nonfinite(self.networks.model.decode(z, clamp=False))
            scored = [job.setting.scored(caption) for caption in captions]
            columns |= self._image_metrics(images, reconstructions, scored)
        finite = is_finite(reconstructions)
        store = self.units[unit_name(job)]
        if job.inverter is None and not finite.any() and store.empty():
            raise NonFiniteError(
                f"the VAE's reconstructions of {', '.join(repr(image.name) for image in job.images)} contain NaN or "
                "infinity: the weights are damaged, or values overflow in the precision of the VAE; set "
                "model.dtype=float32 and trainer.precision=32-true."
            )
        columns["not_finite"] = (~finite).double()
        errors = (z.float() - z0).square()
        columns["latent_mse"] = errors.flatten(1).mean(1)
        columns |= _by_area("latent_mse", errors, images)
        if true_latents is not None:
            columns["distance_encoded"] = _distance(z0, true_latents)
            columns["distance_adjusted"] = _distance(inverted, true_latents)
            columns["distance_reconstructed"] = _distance(z, true_latents)
        rows = [{name: float(values[k]) for name, values in columns.items()} for k in range(len(images))]
        count = MAX_SAVED_IMAGES if job.first else 0
        tensors = images_to_save(images=images[:count], reconstructions=reconstructions[:count])
        store.write(job.key, tensors, {"rows": rows})
        return job.label

    def _images_and_latents(self, job: InversionJob, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return images ``[B,3,H,W]`` in [0, 1], their latents, and the true latents if the images are generated.

        The latents are cached for the other methods with the same images, because generating images or decoder
        inversion takes about as long as the inversion.
        """
        model, setting = self.networks.model, job.setting
        source = (setting.steps, setting.guidance) if setting.generated else None
        key = (job.key, source, setting.decoder_iterations)
        z0, true_latents = self._cache.get(key) or (None, self._generate(job, prompts))
        if true_latents is None:
            images = torch.stack([image.image for image in job.images]).to(self.device).float() / 255
        else:
            with torch.no_grad():
                images = mask_nonfinite(model.decode(true_latents, clamp=False))
        if z0 is None:
            lost = ~is_finite(images).to(images.device).view(-1, 1, 1, 1)
            z0 = DecoderInversion(setting.decoder_iterations)(model, images.masked_fill(lost, 0.5))
            z0 = z0.masked_fill(lost, torch.nan)
            self._cache[key] = (z0, true_latents)
            if len(self._cache) > MAX_CACHED_BATCHES:
                self._cache.popitem(last=False)
        return images, z0, true_latents

    def _generate(self, job: InversionJob, prompts: list[str]) -> Tensor | None:
        """Generate latents ``[B,C,h,w]`` from ``prompts``. If the setting uses real images, return None."""
        if not job.setting.generated:
            return None
        model = self.networks.model
        noise = model.noise([image.name for image in job.images], self.noise_seed)
        with torch.no_grad():
            predictor = model.predictor(prompts, job.setting.guidance)
            return model.sample(noise, predictor, model.schedule(job.setting.steps))

    def _invert(self, job: InversionJob, z0: Tensor, captions: list[str]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Invert ``z0`` and sample latents from the inverted seeds, with the prompts of the setting of ``job``.

        Returns the latents that were inverted, the sampled latents, and a dict from column name to one measured value
        per image. The latents that were inverted differ from ``z0`` if the method adjusts the latents before the
        inversion.
        """
        model, setting = self.networks.model, job.setting
        prompts = [setting.source(caption) for caption in captions]
        targets = [setting.target(caption) for caption in captions]
        schedule = model.schedule(setting.steps)
        predictor = model.predictor(prompts, setting.guidance)
        path: list[Tensor] = []
        start = self._now()
        inversion = job.inverter.invert(z0, predictor, schedule, lambda _, z: path.append(z))
        seconds = self._now() - start
        sampler = predictor if targets == prompts else model.predictor(targets, setting.guidance)
        evaluations = sampler.forward_evaluations
        z = job.inverter.reconstruct(inversion, sampler, schedule).float()
        sampling_nfe = (sampler.forward_evaluations - evaluations) / len(z0)
        measured = with_measured_residuals(inversion, path, predictor, schedule, tolerance=SOLVED_TOLERANCE)
        p_values = normality(inversion.seed)
        columns = {
            "residual": measured.residuals.max(0).values,
            "residual_mean": measured.residuals.mean(0),
            "solved": measured.solved.double().mean(0),
            "residual_converged": measured.residual_converged,
            "nfe_per_step": inversion.nfe.double().mean(0),
            "backward_per_step": inversion.backward.double().mean(0),
            "nfe_total": sampling_nfe + (inversion.nfe + NFE_PER_BACKWARD * inversion.backward).double().sum(0),
            "seconds": torch.full((len(z0),), seconds / len(z0)),
            "stored_bytes": torch.full((len(z0),), inversion.aux_bytes),
            "latent_shift": _distance(inversion.z0, z0),
            "norm": inversion.seed.flatten(1).norm(dim=1) / inversion.seed[0].numel() ** 0.5,
            "normality": p_values,
            "normality_rejected": (~(p_values >= SIGNIFICANCE)).double(),
            "patch_correlation": patch_correlation(inversion.seed),
            "straightness": straightness([inversion.z0, *path], schedule),
        }
        return inversion.z0, z, columns

    def _image_metrics(self, images: Tensor, reconstructions: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Compare images and reconstructions ``[B,3,H,W]``; return a dict from metric name to one value per image."""
        clip, classifier = self.networks.clip, self.networks.classifier
        return INVERSION.compute(ReconstructionBatch(reconstructions, images, prompts, clip, classifier, self.lpips))

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


def _by_area(name: str, errors: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Return the means ``[B]`` of ``errors [B,C,h,w]`` over the plain areas and over the textured areas of ``images``.

    Plain areas are areas of nearly constant color (:func:`~experiments.evaluation.seed_statistics.plain_areas`).
    """
    plain = plain_areas(images, errors.shape[2:])
    means = errors.mean(1)
    return {f"{name}_plain": area_errors(means, plain), f"{name}_textured": area_errors(means, ~plain)}


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the Euclidean distance between the two latents of each image, ``float64 [B]`` on the CPU."""
    return (a.cpu().double() - b.cpu().double()).flatten(1).norm(dim=1)
