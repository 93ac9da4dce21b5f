"""Trains the VAE of the emoji models: images of 64 x 64 pixels, latents of shape 4 x 16 x 16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import MinLen
from diffusers import AutoencoderKL
from lightning.pytorch import LightningModule, Trainer
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchmetrics.functional.image import peak_signal_noise_ratio

from experiments.data.backgrounds import AUGMENTATIONS
from experiments.data.emoji import AugmentedEmojiImages, EmojiImages, check_corpus
from experiments.pretrain.training import (
    ImageDataModule,
    TrainingTask,
    adamw,
    check_network,
    check_output,
    fit,
    load_pretrained,
    report,
)
from rnri.validation import NonEmptyStr, dataclass


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the horizontal and the vertical differences between neighboring pixels of ``images [B, C, H, W]``."""
    return images.diff(dim=-1), images.diff(dim=-2)


class Autoencoder(LightningModule):
    """Training of the VAE on images in [-1, 1] with the loss ``L1 + 5 * MSE + 0.5 * edge error + kl_weight * KL``.

    The edge error is the L1 difference between the :func:`edges` of an image and of its reconstruction.
    """

    def __init__(self, vae: AutoencoderKL, lr: float, steps: int, kl_weight: float) -> None:
        super().__init__()
        self.vae = vae
        self.lr, self.steps, self.kl_weight = lr, steps, kl_weight

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images = batch[0] * 2 - 1
        posterior = self.vae.encode(images).latent_dist
        output = self.vae.decode(posterior.sample()).sample.float()
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        edge = sum(F.l1_loss(a, b) for a, b in zip(edges(output), edges(images), strict=True))
        loss = F.l1_loss(output, images) + 5 * F.mse_loss(output, images) + 0.5 * edge + self.kl_weight * kl
        self.log_dict({"loss": loss, "kl": kl}, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.log("psnr", reconstruction_psnr(self.vae, batch[0]).mean(), prog_bar=True)

    def configure_optimizers(self) -> dict:
        return adamw(self, self.lr, self.steps, warmup=100, decay_from=0.3)


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return the PSNR ``[B]`` in dB between ``images [B, 3, H, W]`` in [0, 1] and their reconstructions.

    A reconstruction is decoded from the mean of the VAE's latent distribution.
    """
    output = vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample.float()
    output = (output / 2 + 0.5).clamp(0, 1)
    return peak_signal_noise_ratio(output, images, data_range=1.0, dim=(1, 2, 3), reduction="none")


@dataclass
class PretrainAutoencoder(TrainingTask):
    """The task of ``experiment=pretrain_autoencoder``: trains the VAE and measures its PSNR on unseen drawings.

    Args:
        corpus: folder of the emoji corpus.
        output: folder to which the trained VAE is saved.
        batch_size: number of images per training step.
        lr: learning rate.
        kl_weight: weight of the Kullback-Leibler (KL) term in the loss.
        channels: number of channels of each resolution level of encoder and decoder.
        init_from: folder of a saved VAE from which the training starts; None starts from random weights.
    """

    corpus: NonEmptyStr | None
    output: NonEmptyStr
    batch_size: PositiveInt
    lr: PositiveFloat
    kl_weight: NonNegativeFloat
    channels: Annotated[Sequence[PositiveInt], MinLen(1)]
    init_from: NonEmptyStr | None = None

    def prepare(self, trainer: Trainer) -> None:
        check_corpus(self.corpus)
        if not self.init_from:
            check_network(
                lambda: reconstruction_psnr(self.build(), torch.zeros(1, 3, 64, 64)), channels=list(self.channels)
            )
        check_output(self.output)
        self.vae = load_pretrained(AutoencoderKL, "task.init_from", self.init_from) if self.init_from else self.build()

    def run(self, trainer: Trainer) -> None:
        vae = self.vae
        train = AugmentedEmojiImages(EmojiImages(self.corpus, ["corpus"]))
        unseen = AugmentedEmojiImages(EmojiImages(self.corpus, ["reference", "fid"]), augmentations=1)
        module = Autoencoder(vae, self.lr, trainer.max_steps, self.kl_weight)
        validation = Subset(unseen, range(0, len(unseen), 4))
        fit(trainer, module, ImageDataModule(train, validation, self.batch_size))
        report(trainer, self.save(vae.float().eval(), train, unseen))

    def build(self) -> AutoencoderKL:
        levels = len(self.channels)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(self.channels),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=16,
            sample_size=64,
            mid_block_add_attention=False,
        )

    def save(self, vae: AutoencoderKL, train: AugmentedEmojiImages, unseen: AugmentedEmojiImages) -> dict[str, float]:
        """Set the scaling factor of the VAE to 1 / (standard deviation of the training latents), and save the VAE.

        Returns:
            The mean PSNR in dB on ``unseen``, the scaling factor, and the number of images in ``unseen``.
        """
        sample = DataLoader(Subset(train, range(0, len(train), AUGMENTATIONS + 1)), 64)
        with torch.no_grad():
            latents = torch.cat([vae.encode(images * 2 - 1).latent_dist.mean for images, _ in sample])
        vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
        vae.save_pretrained(Path(self.output))
        psnr = torch.cat([reconstruction_psnr(vae, images) for images, _ in DataLoader(unseen, 64)])
        return {
            "psnr_unseen": psnr.mean().item(),
            "scaling_factor": vae.config.scaling_factor,
            "n": len(psnr),
        }
