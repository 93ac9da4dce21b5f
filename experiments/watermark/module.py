"""The Lightning module that generates watermarked images, attacks them, and reads and forges the watermarks."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from experiments.base import Networks
from experiments.cache.store import UnitStore
from experiments.finite import NonFiniteError, is_finite, to_bytes
from experiments.watermark.attacks import NO_ATTACK, Attack, publish
from experiments.watermark.jobs import SCHEMES, ForgeryJob, ReadingJob, Scheme, WatermarkSettings
from rnri import Inverter
from rnri.models.adapters import set_scheduler
from rnri.watermark import Watermark

MAX_CACHED_BATCHES = 32  # maximum number of batches whose attacked images are kept in memory for the next methods


class WatermarkModule(LightningModule):
    """Lightning module that computes jobs and stores their results on disk.

    A job reads the watermarks of a batch of images, or forges a watermark. Keys and messages of watermarks are not
    stored.
    """

    def __init__(
        self,
        networks: Networks,
        units: Mapping[str, UnitStore],
        attacks: Mapping[str, Attack],
        watermarks: WatermarkSettings,
        *,
        noise_seed: int,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.networks = networks
        self.units = units
        self.attacks = attacks
        self.watermarks = watermarks
        self.noise_seed = noise_seed
        self.batch_size = batch_size
        self._cache: OrderedDict[tuple, AttackedImages] = OrderedDict()

    @torch.no_grad()
    def predict_step(self, job: ReadingJob | ForgeryJob, _: int) -> str:
        """Read the watermarks of a batch of images, or forge a watermark, and store the results.

        Returns the label of the job.
        """
        tensors, rows = self._forge(job) if isinstance(job, ForgeryJob) else self._read(job)
        self.units[job.store].write(job.key, tensors, {"rows": rows})
        return job.label

    def _read(self, job: ReadingJob) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Invert the attacked images of a job, and read the watermarks from the inverted seeds."""
        attacked = self._attacked(job)
        seeds, nfe = self._invert(job.inverter, attacked.latents, job.setting.inversion_steps)
        marks = {
            scheme: [self.watermarks.mark(scheme, each.name, self.noise_seed) for each in job.prompts]
            for scheme in SCHEMES
        }
        shape = (len(SCHEMES), len(job.attacks), len(job.prompts))
        seeds = seeds.view(*shape, *seeds.shape[1:])
        nfe = nfe.view(shape)
        errors = _rms(seeds - attacked.seeds[:, None].to(seeds))
        shifts = _rms(seeds - seeds[:, job.attacks.index(NO_ATTACK), None])
        # Only the seeds with a Gaussian Shading watermark are read with wrong keys, because with a wrong key they look
        # like seeds without a watermark.
        others = self._read_with_other_keys(seeds[SCHEMES.index("gaussian_shading")])
        rows = []
        for s, scheme in enumerate(SCHEMES):
            for a, attack in enumerate(job.attacks):
                for k, (mark, prompt) in enumerate(zip(marks[scheme], job.prompts, strict=True)):
                    rows.append(
                        {
                            "scheme": scheme,
                            "attack": attack,
                            "sample": prompt.name,
                            "prompt": prompt.prompt,
                            **_scores(mark, seeds[s, a, k]),
                            "other_p_values": others[scheme][:, a, k].tolist(),
                            "seed_error": float(errors[s, a, k]),
                            "seed_shift": float(shifts[s, a, k]),
                            "nfe": float(nfe[s, a, k]),
                        }
                    )
        tensors = {"examples": attacked.examples} if job.first else {}
        return tensors, rows

    def _read_with_other_keys(self, seeds: Tensor) -> dict[Scheme, Tensor]:
        """Read watermarks with K wrong keys from ``seeds [A,B,C,h,w]`` of A attacks on B images.

        Return the p-values ``float64 [K,A,B]`` for each type of watermark.
        """
        flat = seeds.flatten(0, 1)
        p_values = {}
        for scheme in SCHEMES:
            names = [f"other\n{k}" for k in range(self.watermarks.other_keys)]
            marks = [self.watermarks.mark(scheme, name, self.noise_seed) for name in names]
            p_values[scheme] = torch.stack([mark.read(flat).p_value for mark in marks]).view(-1, *seeds.shape[:2])
        return p_values

    def _attacked(self, job: ReadingJob) -> AttackedImages:
        """Return the attacked images of a job, which are generated and attacked only once for all inversion methods."""
        setting = job.setting
        key = (job.key, setting.steps, job.guidance, setting.sampler, tuple(job.attacks))
        if key not in self._cache:
            self._cache[key] = self._attack(job)
            if len(self._cache) > MAX_CACHED_BATCHES:
                self._cache.popitem(last=False)
        return self._cache[key]

    def _attack(self, job: ReadingJob) -> AttackedImages:
        model, names = self.networks.model, [each.name for each in job.prompts]
        prompts = [each.prompt for each in job.prompts]
        latents, examples, embedded = [], [], []
        for scheme in SCHEMES:
            noise = model.noise(names, self.noise_seed)
            marks = [self.watermarks.mark(scheme, name, self.noise_seed) for name in names]
            seeds = torch.cat([mark.embed(noise[k : k + 1]) for k, mark in enumerate(marks)])
            published = self._generate(seeds, prompts, job.guidance, job.setting.steps, sampler=job.setting.sampler)
            attacked = [
                published if name == NO_ATTACK else self.attacks[name](published, names, model).clamp(0, 1)
                for name in job.attacks
            ]
            latents += [self._encode(images) for images in attacked]
            examples.append(torch.stack([to_bytes(images[:1])[0] for images in attacked]))
            embedded.append(seeds.cpu())
        return AttackedImages(torch.cat(latents), torch.stack(examples), torch.stack(embedded))

    def _generate(
        self, seeds: Tensor, prompts: Sequence[str], guidance: float, steps: int, *, sampler: str | None = None
    ) -> Tensor:
        """Generate images ``[B,3,H,W]`` from ``seeds``, rounded to 8 bits per color as in an image file.

        Raises:
            NonFiniteError: an image contains NaN or infinity.
        """
        model = self.networks.model
        if sampler is None:
            predictor = model.predictor(prompts, guidance)
            images = model.decode(model.sample(seeds, predictor, model.schedule(steps)), clamp=False)
        else:
            images = self._generate_with_pipeline(seeds, prompts, guidance, steps, sampler=sampler)
        if not is_finite(images).all():
            raise NonFiniteError(
                "a generated image contains NaN or infinity: set model.dtype=float32 and trainer.precision=32-true."
            )
        return publish(images)

    def _generate_with_pipeline(
        self, seeds: Tensor, prompts: Sequence[str], guidance: float, steps: int, *, sampler: str
    ) -> Tensor:
        model = self.networks.model
        pipe, family = model.pipeline, model.family
        height, width = model.image_size
        scheduler = pipe.scheduler
        set_scheduler(pipe, sampler)
        pipe.set_progress_bar_config(disable=True)
        try:
            return pipe(
                list(prompts),
                latents=family.pack(seeds.to(family.latents_dtype)),
                num_inference_steps=steps,
                height=height,
                width=width,
                generator=torch.Generator().manual_seed(self.noise_seed),
                output_type="pt",
                **family.pipeline_kwargs(guidance),
            ).images.float()
        finally:
            pipe.scheduler = scheduler

    def _encode(self, images: Tensor) -> Tensor:
        return torch.cat([self.networks.model.encode(batch) for batch in images.split(self.batch_size)])

    def _invert(self, inverter: Inverter, latents: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Invert ``latents`` with the empty prompt and without guidance; return the seeds and the NFE per seed."""
        model = self.networks.model
        schedule = model.schedule(steps)
        seeds, nfe = [], []
        for batch in latents.split(self.batch_size):
            inversion = inverter.invert(batch, model.predictor([""] * len(batch)), schedule)
            seeds.append(inversion.seed.cpu())
            nfe.append((inversion.nfe + 2 * inversion.backward).sum(0).double())
        return torch.cat(seeds), torch.cat(nfe)

    def _forge(self, job: ForgeryJob) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Forge a watermark from images with the genuine watermark, and read the watermark from the forged images."""
        model, setting = self.networks.model, job.setting
        mark = self.watermarks.mark(job.scheme, f"forgery\n{job.number}", self.noise_seed)
        *sources, target = job.prompts
        noise = model.noise([f"{each.name}/{job.scheme}" for each in sources], self.noise_seed)
        images = self._generate(mark.embed(noise), [each.prompt for each in sources], job.guidance, setting.steps)
        inverted, _ = self._invert(job.inverter, self._encode(images), setting.steps)
        fresh = model.noise([f"{target.name}/{count}" for count in setting.images], self.noise_seed)
        forged = torch.cat([forge(inverted[:count], fresh[k]) for k, count in enumerate(setting.images)])
        images = self._generate(forged, [target.prompt] * len(setting.images), job.guidance, setting.steps)
        seeds, _ = self._invert(job.inverter, self._encode(images), setting.steps)
        rows = [
            {"scheme": job.scheme, "images": count, "sample": f"{job.scheme}/{job.number}", **_scores(mark, seeds[k])}
            for k, count in enumerate(setting.images)
        ]
        return {}, rows


@dataclasses.dataclass(frozen=True)
class AttackedImages:
    """Latents and example images of attacked images, and the seeds from which the images were generated.

    Attributes:
        latents: latents ``[S*A*B,C,h,w]`` of all images, for S types of watermark, A attacks and B images in this
            order.
        examples: the first image for each type of watermark and each attack, uint8 ``[S,A,3,H,W]``.
        seeds: watermarked seeds from which the images were generated, ``[S,B,C,h,w]``.
    """

    latents: Tensor
    examples: Tensor
    seeds: Tensor


def forge(seeds: Tensor, noise: Tensor) -> Tensor:
    """Return a seed ``[1,C,h,w]`` with a forged watermark, from inverted ``seeds [B,C,h,w]`` with the same watermark.

    The mean of the seeds contains the watermark, because differences between the seeds average out. ``noise [C,h,w]``
    is added to the mean with the weight for which the sum has variance 1.
    """
    average = seeds.double().mean(0).to(noise)
    share = (1 - average.square().mean()).clamp_min(0).sqrt()
    forged = average + share * noise
    return (forged / forged.square().mean().sqrt())[None]


def _rms(differences: Tensor) -> Tensor:
    """Return the root mean square of each seed difference as a tensor ``float64 [S,A,B]`` on the CPU.

    The shape of ``differences`` is ``[S,A,B,C,h,w]`` for S types of watermark, A attacks and B images.
    """
    return differences.cpu().double().square().flatten(3).mean(3).sqrt()


def _scores(mark: Watermark, seed: Tensor) -> dict[str, float | None]:
    """Read the watermark ``mark`` from ``seed [C,h,w]``; return the p-value, the bit accuracy and the sign accuracy."""
    reading = mark.read(seed[None])
    accuracy, signs = reading.bit_accuracy, reading.sign_accuracy
    return {
        "p_value": float(reading.p_value[0]),
        "bit_accuracy": None if accuracy is None else float(accuracy[0]),
        "sign_accuracy": None if signs is None else float(signs[0]),
    }
