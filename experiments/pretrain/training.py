"""Common code of all trainings: optimizer, learning-rate schedule, data loading, checkpoints, and saving of models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torchvision.utils import make_grid

from experiments.cache.atomic import CannotWrite, atomic_write, check_writable
from experiments.finite import to_bytes
from experiments.planning.cost import Cost, StagePlan
from experiments.runtime.training_state import last_checkpoint, log_earlier_values
from rnri.loading import check_loading_info
from rnri.models.checkpoint import load_pipeline

Model = TypeVar("Model")


class TrainingTask:
    """Base class of all experiments that train a network (:class:`experiments.base.Task`)."""

    batch_size: int

    def plan(self, trainer: Trainer) -> list[StagePlan]:
        """Return the estimated cost of the training: one forward and one backward pass for each image of each batch."""
        steps = trainer.max_steps
        images = steps * self.batch_size
        name = f"training, {steps:,} steps of {self.batch_size} images"
        return [StagePlan(name, steps, 0, Cost(images, 0, images, 0))]


def adamw(
    module: nn.Module | list[dict],
    lr: float,
    steps: int,
    *,
    warmup: int,
    decay_from: float,
    weight_decay: float = 0.01,
) -> dict:
    """Return an AdamW optimizer and a learning-rate schedule, in the format of Lightning's ``configure_optimizers``.

    The learning rate increases linearly during the warm-up, is then constant, and finally decays linearly to zero.

    Args:
        module: module to train, or a list of parameter groups.
        lr: maximum learning rate.
        steps: total number of training steps.
        warmup: number of training steps of the warm-up.
        decay_from: fraction of ``steps`` after which the decay of the learning rate begins.
        weight_decay: weight decay of AdamW.
    """

    def factor(step: int) -> float:
        decay = max(steps - step, 0) / max(steps * (1 - decay_from), 1)
        return min((step + 1) / warmup, 1.0, decay)

    parameters = module.parameters() if isinstance(module, nn.Module) else module
    optimizer: Optimizer = AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
    }


class ImageDataModule(LightningDataModule):
    """Data loaders of a training set and a validation set.

    Args:
        train: training set.
        validation: validation set; None: the training has no validation.
        batch_size: number of samples per batch. If the training set has fewer samples, one batch contains all samples.
        seed: integer that determines the order of the training samples.
        workers: number of processes that read samples. If the samples are in memory, 0 is fastest.
    """

    def __init__(
        self, train: Dataset, validation: Dataset | None, batch_size: int, seed: int = 0, *, workers: int = 0
    ) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self.batch_size, self.seed = batch_size, seed
        self.workers = {"num_workers": workers, "persistent_workers": workers > 0}

    def train_dataloader(self) -> DataLoader:
        # The seed depends on the training step, so that a resumed training does not repeat the same batches.
        step = self.trainer.global_step if self.trainer else 0
        generator = torch.Generator().manual_seed(self.seed + step)
        batch_size = min(self.batch_size, len(self.train))
        return DataLoader(
            self.train, batch_size, shuffle=True, drop_last=True, generator=generator, **self.workers
        )  # fmt: skip

    def val_dataloader(self) -> DataLoader | list:
        return DataLoader(self.validation, self.batch_size, **self.workers) if self.validation is not None else []


def fastest_precision() -> str:
    """Return Lightning's ``precision`` setting: bfloat16 autocast if the hardware supports bfloat16, else float32.

    A CPU without bfloat16 instructions emulates bfloat16, which is several times slower than float32.
    """
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # old PyTorch versions lack get_capabilities
        native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16-mixed" if native else "32-true"


def reseed_resumed(module: LightningModule) -> None:
    """If the training resumes, change the seed of PyTorch's generator, so that random augmentations do not repeat."""
    if module.global_step:
        torch.manual_seed(torch.initial_seed() + module.global_step)


def fit(trainer: Trainer, module: LightningModule, data: LightningDataModule) -> None:
    """Train ``module``. If the run folder contains a checkpoint, the training resumes from the last checkpoint."""
    checkpoint = last_checkpoint(trainer)
    if checkpoint is not None:
        log_earlier_values(trainer, checkpoint)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)


def check_network(build: Callable[[], Any], **settings: Any) -> None:
    """Check before a training that a network can be built from its settings. The random state does not change.

    Args:
        build: function that creates the network and computes its output.
        settings: config keys of ``task`` that determine the network, with their values. The error message contains
            these keys and values.

    Raises:
        ValueError: ``build`` raised an error.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            build()
    except Exception as error:  # diffusers, transformers and timm raise exceptions of many types
        reason = shorten(str(error), 300)
        values = " ".join(f"task.{name}={value}" for name, value in settings.items())
        raise ValueError(f"{values}: cannot build this network ({reason}); choose other values.") from None


def check_output(folder: str | Path) -> None:
    """Raise a ValueError if the output folder ``folder`` is not writable, before the training begins."""
    try:
        check_writable(Path(folder) / "config.json")
    except CannotWrite as error:
        raise ValueError(f"task.output={str(folder)!r}: {error}") from None


def load_pretrained(model: type[Model], key: str, folder: str) -> Model:
    """Load a diffusers model or pipeline in float32. A pipeline is loaded without its safety checker.

    Args:
        model: class of the model or pipeline.
        key: config key whose value is ``folder``, for the error message.
        folder: folder of the saved model.

    Raises:
        ValueError: the model cannot be loaded, or ``folder`` lacks a weight of the model.
    """
    try:
        return _load_pretrained(model, folder)
    except Exception as error:  # diffusers, safetensors and json raise exceptions of many types
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{key}={folder!r} cannot be loaded as {model.__name__} ({reason}): set {key} to a folder with a saved "
            f"{model.__name__}."
        ) from None


def _load_pretrained(model: type[Any], folder: str) -> Any:
    if issubclass(model, DiffusionPipeline):
        pipeline = load_pipeline(folder, dtype=torch.float32, local_files_only=True, variant=None, revision=None)
        if not isinstance(pipeline, model):
            raise ValueError(f"the folder contains a {type(pipeline).__name__}")
        return pipeline
    network, loading_info = model.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    check_loading_info("the weights", model.__name__, loading_info)
    return network


def final_loss(trainer: Trainer) -> dict[str, float]:
    """Return the loss of the last training step, as ``{"loss": value}``.

    If a finished training is resumed, no training step is run, and the returned dictionary is empty.
    """
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name == "loss"}


@dataclass(frozen=True)
class Unregistered:
    """Wraps a pipeline that is an attribute of a Lightning module, so that checkpoints do not contain the pipeline."""

    value: DiffusionPipeline


def sample_seeds(count: int, shape: tuple[int, ...]) -> Tensor:
    """Return ``count`` initial noise latents, ``[count, *shape]``. Latent k depends only on k and ``shape``."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in range(count)])


def save_grid(images: Tensor, trainer: Trainer) -> None:
    """Save ``images [B, 3, H, W]`` in [0, 1] as one grid in the run folder.

    The name of the file contains the training step, as in ``samples/step001000.png``.

    Raises:
        NonFiniteError: ``images`` contain NaN or infinity.
    """
    folder = Path(trainer.default_root_dir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    grid = make_grid(to_bytes(images), nrow=8)  # [3,H',W']
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(folder / f"step{trainer.global_step:06d}.png")


def report(trainer: Trainer, results: Mapping[str, Any]) -> None:
    """Print the results of a training, and write the results to the file ``results.json`` in the run folder."""
    print(json.dumps(results))
    if trainer.is_global_zero:
        text = json.dumps(results, indent=1)
        atomic_write(Path(trainer.default_root_dir) / "results.json", lambda path: path.write_text(f"{text}\n"))


def save_fp16(model: nn.Module, folder: str | Path) -> None:
    """Save ``model`` to ``folder`` with weights in float16, but with the dtype float32 in its config.

    By default, diffusers loads a model in float32, but transformers loads a model with the dtype in its config. If the
    config contained float16, the models of a pipeline would be loaded with different dtypes.
    """
    deepcopy(model).half().save_pretrained(folder)
    config = Path(folder) / "config.json"
    fields = json.loads(config.read_text())
    if "dtype" in fields:
        fields["dtype"] = "float32"
        config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
