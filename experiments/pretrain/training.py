"""What the trainings share: the optimizer's schedule, EMA, checkpoints by the clock, and saving in half."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torchvision.utils import make_grid

from experiments.cache.atomic import CannotWrite, check_writable
from experiments.finite import to_bytes

Model = TypeVar("Model")


def adamw(
    module: nn.Module | list[dict], lr: float, steps: int, warmup: int, decay_from: float, weight_decay: float = 0.01
) -> dict:
    """AdamW under a warm-up, a plateau and a linear decay to zero that starts at ``decay_from`` of ``steps``.

    ``module`` may be groups of parameters with rates of their own.

    A plateau lets a training be prolonged from its last checkpoint without having decayed too early.
    """

    def factor(step: int) -> float:
        left = max(steps - step, 0) / max(steps * (1 - decay_from), 1)
        return min((step + 1) / warmup, 1.0, left)

    parameters = module.parameters() if isinstance(module, nn.Module) else module
    optimizer: Optimizer = AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
    }


class ImageDataModule(LightningDataModule):
    """Loaders over two datasets. Worker processes only cost where everything is in memory.

    A training set smaller than a batch is one batch.
    """

    def __init__(
        self, train: Dataset, validation: Dataset | None, batch_size: int, seed: int = 0, workers: int = 0
    ) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self.batch_size, self.seed = batch_size, seed
        self.workers = {"num_workers": workers, "persistent_workers": workers > 0}

    def train_dataloader(self) -> DataLoader:
        step = self.trainer.global_step if self.trainer else 0  # a training that goes on sees other batches
        generator, batch_size = torch.Generator().manual_seed(self.seed + step), min(self.batch_size, len(self.train))
        return DataLoader(
            self.train, batch_size, shuffle=True, drop_last=True, generator=generator, **self.workers
        )  # fmt: skip

    def val_dataloader(self) -> DataLoader | list:
        return DataLoader(self.validation, self.batch_size, **self.workers) if self.validation is not None else []


def fastest_precision() -> str:
    """Lightning's name of bfloat16 autocast where the hardware multiplies in it, else of single precision.

    A CPU without such units emulates it, several times slower than single precision.
    """
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch cannot say
        native = any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16-mixed" if native else "32-true"


def fit(trainer: Trainer, module: LightningModule, data: LightningDataModule) -> None:
    """Trains from the run folder's last checkpoint if there is one, so that a killed training goes on."""
    checkpoint = next(c for c in trainer.callbacks if isinstance(c, ModelCheckpoint))
    last = Path(str(checkpoint.dirpath)) / "last.ckpt"
    trainer.fit(module, datamodule=data, ckpt_path=last if last.is_file() else None, weights_only=False)


def check_output(folder: str | Path) -> None:
    """ValueError, before a training begins, unless its model can be written to ``folder``."""
    try:
        check_writable(Path(folder) / "config.json")
    except CannotWrite as error:
        raise ValueError(f"task.output={str(folder)!r}: {error}") from None


def load_pretrained(model: type[Model], key: str, folder: str, **options: Any) -> Model:
    """The model of diffusers saved in ``folder``, which is the value of ``key``. ValueError unless it loads."""
    try:
        return model.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # of safetensors, of JSON and of diffusers
        said = " ".join(str(error).split())
        raise ValueError(
            f"{key}={folder!r} is no folder of {model.__name__} ({said}): name one that holds it."
        ) from None


def final_loss(trainer: Trainer) -> dict[str, float]:
    """The loss of the last step; nothing where the training had ended before and made none."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name == "loss"}


@dataclass(frozen=True)
class Unregistered:
    """Keeps a pipeline's other parts out of a Lightning module and so out of its checkpoints."""

    value: DiffusionPipeline


def save_grid(images: Tensor, trainer: Trainer) -> None:
    """``images [B, 3, H, W]`` in [0, 1] as one picture in ``samples`` of the run folder, named by the step.

    Raises:
        NotFinite: NaN or infinity among them.
    """
    folder = Path(trainer.default_root_dir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    grid = make_grid(to_bytes(images), nrow=8)  # [3,H',W']
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(folder / f"step{trainer.global_step:06d}.png")


def report(trainer: Trainer, results: Mapping[str, Any]) -> None:
    """Prints what a training came to and leaves it in ``results.json`` of the run folder."""
    print(json.dumps(results))
    if trainer.is_global_zero:
        (Path(trainer.default_root_dir) / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def save_fp16(model: nn.Module, folder: str | Path) -> None:
    """``save_pretrained`` with weights in half precision; the config asks for single precision at load time.

    transformers loads a checkpoint in the precision its config names; diffusers in single unless told otherwise.
    Without the correction a pipeline loaded with defaults would mix the two.
    """
    deepcopy(model).half().save_pretrained(folder)
    config = Path(folder) / "config.json"
    fields = json.loads(config.read_text())
    if "dtype" in fields:
        fields["dtype"] = "float32"
        config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
