"""The Lightning module that inverts and edits images, and measures the quality and the duration of the edits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from experiments.cache.store import UnitStore
from experiments.editing.jobs import ATTENTION_EDITS, GROUND_TRUTH, NONE, EditingModel, EditJob
from experiments.evaluation.editing_metrics import EditingNetworks
from experiments.evaluation.registry import EDITING
from experiments.finite import mask_nonfinite, select_finite
from experiments.runtime.device import synchronize
from rnri import Inversion, LatentDiffusion
from rnri.editing import Editor, edit_latents

MAX_SAVED_IMAGES = 8  # maximum number of images that are saved per batch and edit method
EditOutput = tuple[str, Tensor, dict[str, Tensor]]
"""Name of an edit method, edited images ``[B,3,H,W]``, and a dict from column name to measured values ``[B]``."""


class EditingModule(LightningModule):
    """Edits a batch of images with each edit method of a job, computes the metrics, and stores the results.

    Args:
        networks: the networks that compute the metrics.
        units: dict from the ``folder_key`` of a job to the store (folder) for the results of the job.
        size: image size ``(H, W)`` in pixels for the reference methods, which have no model.
        min_psnr: the background of an edited image counts as preserved if its PSNR in dB is at least this value.
    """

    def __init__(
        self,
        networks: EditingNetworks,
        units: Mapping[str, UnitStore],
        *,
        size: tuple[int, int],
        min_psnr: float,
    ) -> None:
        super().__init__()
        self.networks = networks
        self.units = units
        self.size = size
        self.min_psnr = min_psnr
        self._warm_models: set[str] = set()

    @torch.no_grad()
    def predict_step(self, job: EditJob, _: int) -> str:
        """Edit the images of a job with each of its edit methods, compute the metrics, and store the results.

        Returns the label of the job.
        """
        size = self.size if job.model is None else job.model.model.image_size
        originals = torch.stack([edit.load_image(size) for edit in job.edits]).to(self.device)
        tensors: dict[str, Tensor] = {}
        rows: dict[str, list[dict[str, float]]] = {}
        for name, images, columns in self._outputs(job, originals):
            columns = columns | EDITING.compute(job.batch(images, originals, self.networks, self.min_psnr))
            columns["not_finite"] = images.isnan().flatten(1).any(1).double()
            rows[name] = [{column: float(values[k]) for column, values in columns.items()} for k in range(len(images))]
            tensors[name], tensors[f"{name}_finite"] = select_finite(images[:MAX_SAVED_IMAGES])
        self.units[job.folder_key].write(job.key, tensors, {"rows": rows})
        return job.label

    def _outputs(self, job: EditJob, originals: Tensor) -> Iterator[EditOutput]:
        if job.model is not None:
            yield from self._edits(job, originals)
            return
        images = [edit.load_image(self.size, target=job.name == GROUND_TRUTH) for edit in job.edits]
        yield NONE, torch.stack(images).to(self.device), {}

    def _edits(self, job: EditJob, originals: Tensor) -> Iterator[EditOutput]:
        """Yield the edited images and the measured times of each edit method.

        The images are inverted only once for all edit methods. The measured time of each edit method includes the time
        of the inversion.
        """
        model = job.model.model
        self._warm_up(job.model, originals)
        with NetworkTimer(model, self.device) as inversion_timer:
            z0 = model.encode(originals)
            inversion = None if isinstance(job.method, Editor) else self._invert(job, z0)
        for name in job.edit_methods:
            with NetworkTimer(model, self.device) as timer:
                z, columns = self._edit(name, job, z0, inversion)
                images = model.decode(z, clamp=False)
            times = {
                "seconds": inversion_timer.total_seconds + timer.total_seconds,
                "seconds_networks": inversion_timer.network_seconds + timer.network_seconds,
            }
            columns |= {column: torch.full((len(z),), seconds / len(z)) for column, seconds in times.items()}
            yield name, mask_nonfinite(images), columns

    def _invert(self, job: EditJob, z0: Tensor) -> Inversion:
        model = job.model.model
        predictor = model.predictor([edit.source for edit in job.edits], job.model.guidance)
        return job.method.invert(z0, predictor, model.schedule(job.model.steps))

    def _edit(
        self, name: str, job: EditJob, z0: Tensor, inversion: Inversion | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the edited latents and a dict from column name to measured values.

        For attention edits, the dict contains the MSE between the reconstructed latents and the VAE's latents of the
        source images. For other edits, the dict is empty.
        """
        model = job.model.model
        guidance = job.model.guidance
        schedule = model.schedule(job.model.steps)
        sources = [edit.source for edit in job.edits]
        targets = [edit.target for edit in job.edits]
        if inversion is None:
            scales = job.method.guidances(guidance)
            predictors = [model.predictor(*each) for each in zip((sources, targets), scales, strict=True)]
            return job.method.edit(z0, *predictors, schedule).float(), {}
        if name not in ATTENTION_EDITS.values():
            return job.method.reconstruct(inversion, model.predictor(targets, guidance), schedule).float(), {}
        reconstruction, z = edit_latents(
            model,
            job.method,
            inversion,
            schedule,
            prompts=sources,
            edited=targets,
            edit_config=job.model.attention,
            guidance=guidance,
        )
        return z.float(), {"latent_mse": (reconstruction.float() - z0).square().flatten(1).mean(1)}

    def _warm_up(self, editing_model: EditingModel, originals: Tensor) -> None:
        """Call each network of a model once, so that measured times exclude the overhead of the first call."""
        if editing_model.name not in self._warm_models:
            model = editing_model.model
            z = model.encode(originals)
            timestep = model.schedule(editing_model.steps).timestep(0)
            model.predictor([""] * len(z), editing_model.guidance)(z, timestep)
            model.decode(z)
            self._warm_models.add(editing_model.name)


class NetworkTimer:
    """Context manager that measures the time spent in the networks of a model (denoiser, text encoders and VAE).

    Attributes:
        network_seconds: total time of all network calls in seconds.
        total_seconds: time between entering and leaving the context in seconds.
    """

    def __init__(self, model: LatentDiffusion, device: torch.device) -> None:
        self.device = device
        self.network_seconds = 0.0
        self.total_seconds = 0.0
        pipe = model.pipeline
        encoders = [part for name, part in pipe.components.items() if name.startswith("text_encoder") and part]
        self._networks: list[nn.Module] = [model.family.network, *encoders, pipe.vae.encoder, pipe.vae.decoder]
        self._handles: list[Any] = []

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    def __enter__(self) -> NetworkTimer:
        call_starts: list[float] = []

        def before(*_: Any) -> None:
            call_starts.append(self._now())

        def after(*_: Any) -> None:
            self.network_seconds += self._now() - call_starts.pop()

        for network in self._networks:
            self._handles += [network.register_forward_pre_hook(before), network.register_forward_hook(after)]
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.total_seconds = self._now() - self._start
        for handle in self._handles:
            handle.remove()
