"""Training of the text encoder and the U-Net of the emoji diffusion model, in the latent space of a trained VAE."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import MinLen
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from lightning.pytorch import LightningModule, Trainer
from pydantic import NonNegativeFloat, PositiveInt
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from experiments.data.backgrounds import Augmentation
from experiments.data.emoji import EmojiImages, check_corpus, read_table
from experiments.pretrain.training import (
    ImageDataModule,
    TrainingTask,
    Unregistered,
    adamw,
    check_network,
    check_output,
    final_loss,
    fit,
    load_pretrained,
    report,
    save_fp16,
    save_grid,
)
from rnri.models.fingerprint import fingerprint
from rnri.validation import NonEmptyStr, RandomSeed, UnitInterval, dataclass

MAX_TOKENS = 24  # maximum number of tokens of a caption, including start and end token
SAMPLE_STEPS, SAMPLE_GUIDANCE = 20, 3.0  # sampling steps and guidance scale of the sample images during training


def build_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Return a CLIP tokenizer that is trained on ``captions``, so that every word of the captions is one token.

    The same captions always give the same token ids, which is necessary for resuming a training. Because the package
    ``tokenizers`` assigns ids to tokens of equal frequency in random order, this function assigns ids to the words of
    the captions in alphabetical order.
    """
    size = 4_000  # maximum vocabulary size, larger than the vocabulary of the captions
    trained = CLIPTokenizer().train_new_from_iterator(sorted(set(captions)), size, show_progress=False)
    learned = json.loads(trained.backend_tokenizer.to_str())["model"]
    special = [trained.bos_token, trained.eos_token]
    chunks = {chunk for caption in captions for chunk in caption.split()}
    words = sorted({token for chunk in chunks for token in trained.tokenize(chunk)})
    others = sorted(set(learned["vocab"]) - set(words) - set(special))
    vocabulary = {token: k for k, token in enumerate([*special, *words, *others])}
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def build_scheduler() -> DDIMScheduler:
    """Return a DDIM scheduler with the noise schedule of Stable Diffusion."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_unet(vae: AutoencoderKL, channels: tuple[int, ...], text_width: int) -> UNet2DConditionModel:
    """Return a U-Net with cross-attention at all resolutions except the highest.

    Cross-attention at the highest resolution would triple the time of a training step.
    """
    attention_levels = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1),
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * attention_levels,
        up_block_types=("CrossAttnUpBlock2D",) * attention_levels + ("UpBlock2D",),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=4,
    )


class CaptionedLatents(Dataset):
    """The captioned images of the emoji corpus, as a dataset of pairs ``(latent [4, h, w], token ids [L])``.

    Args:
        corpus: folder of the emoji corpus.
        vae: VAE that encodes the images to latents.
        tokenizer: tokenizer of the model to train.
        cache: file in which the latents are stored. If the file contains the latents of the same images and the same
            VAE, the latents are read from the file.
        max_images: number of images, drawn at random, that are used with all their captions; None: all images are used.
    """

    def __init__(
        self, corpus: str, vae: AutoencoderKL, tokenizer: CLIPTokenizer, *, cache: Path, max_images: int | None = None
    ) -> None:
        table = read_table(Path(corpus) / "captions.parquet")
        shown = list(zip(table["image_id"][:], table["augmentation_seed"][:], strict=True))
        distinct = sorted(set(shown))
        if max_images is not None:
            distinct = sorted(random.Random(0).sample(distinct, min(max_images, len(distinct))))
        row_of = {pair: row for row, pair in enumerate(distinct)}
        self.rows = torch.tensor([row_of[pair] for pair in shown if pair in row_of])
        self.texts = [text for text, pair in zip(table["caption"][:], shown, strict=True) if pair in row_of]
        self.tokens = tokenizer(self.texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        self.latents = self._latents(EmojiImages(corpus, ["corpus"]), distinct, vae, cache)

    @staticmethod
    @torch.no_grad()
    def _latents(
        drawings: EmojiImages,
        pairs: list[tuple[int, int]],
        vae: AutoencoderKL,
        cache: Path,
        *,
        batch_size: int = 64,
    ) -> Tensor:
        key = fingerprint({"vae": vae}, {"images": pairs})
        if cache.is_file():
            with safe_open(cache, "pt") as file:
                if (file.metadata() or {}).get("key") == key:
                    return file.get_tensor("latents")
        latents = []
        for start in tqdm(range(0, len(pairs), batch_size), desc="encoding images"):
            batch = [drawings.render(i, Augmentation.from_seed(s)) for i, s in pairs[start : start + batch_size]]
            images = torch.stack([torch.from_numpy(image) for image in batch]).float() / 127.5 - 1
            latents.append((vae.encode(images).latent_dist.mean * vae.config.scaling_factor).contiguous())
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": torch.cat(latents)}, cache, metadata={"key": key})
        return torch.cat(latents)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.latents[self.rows[index]], self.tokens[index]


class Prompts(Dataset):
    """The prompts from which sample images are generated during the training, as a dataset."""

    def __init__(self, prompts: list[str]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> str:
        return self.prompts[index]


class DenoiserTraining(LightningModule):
    """Training of noise prediction with min-SNR loss weights (Hang et al. 2023, gamma = 5).

    With min-SNR weights, the training converges several times faster than with equal weights of all noise levels.

    Args:
        pipeline: the pipeline whose U-Net and text encoder are trained.
        lr: learning rate.
        steps: number of training steps.
        decay_from: fraction of the training steps after which the linear decay of the learning rate to zero begins.
        drop_caption: fraction of the captions that are replaced by the empty caption, for classifier-free guidance.
    """

    def __init__(
        self, pipeline: StableDiffusionPipeline, lr: float, steps: int, *, decay_from: float, drop_caption: float
    ) -> None:
        super().__init__()
        self.unet = pipeline.unet.train()
        self.text_encoder = pipeline.text_encoder.train()
        self.pipeline = Unregistered(pipeline)
        self.lr = lr
        self.steps = steps
        self.decay_from = decay_from
        self.drop_caption = drop_caption
        self.register_buffer("alpha_bar", pipeline.scheduler.alphas_cumprod, persistent=False)
        empty = pipeline.tokenizer([""], padding="max_length", return_tensors="pt").input_ids
        self.register_buffer("empty", empty, persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        z0, tokens = batch
        rows = len(z0)
        dropped = torch.rand(rows, 1, device=self.device) < self.drop_caption
        text = self.text_encoder(torch.where(dropped, self.empty, tokens))[0]
        t = torch.randint(len(self.alpha_bar), (rows,), device=self.device)
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(z0)
        predicted = self.unet(a.sqrt() * z0 + (1 - a).sqrt() * noise, t, text).sample.float()
        error = F.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3))
        snr = (a / (1 - a)).flatten()
        loss = (error * snr.clamp(max=5) / snr).mean()
        self.log_dict({"loss": loss, "error": error.mean()}, prog_bar=True)
        return loss

    def validation_step(self, prompts: list[str], _: int) -> None:
        generators = [torch.Generator().manual_seed(k) for k in range(len(prompts))]
        pipeline = self.pipeline.value
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(
            list(prompts), num_inference_steps=SAMPLE_STEPS, guidance_scale=SAMPLE_GUIDANCE, generator=generators,
            output_type="pt",
        ).images  # fmt: skip
        save_grid(images, self.trainer)

    def configure_optimizers(self) -> dict:
        return adamw(self, self.lr, self.steps, warmup=200, decay_from=self.decay_from)


@dataclass
class PretrainDenoiser(TrainingTask):
    """The task of ``experiment=pretrain_denoiser``: trains text encoder and U-Net of a small Stable Diffusion model.

    Args:
        corpus: folder of the emoji corpus.
        vae: folder of the trained VAE.
        output: folder to which the trained pipeline is saved.
        batch_size: number of pairs of image and caption per training step.
        lr: learning rate. A learning rate of 0 keeps the weights unchanged.
        decay_from: fraction of the training steps after which the linear decay of the learning rate to zero begins.
        drop_caption: fraction of the captions that are replaced by the empty caption, for classifier-free guidance.
        channels: number of channels of each resolution level of the U-Net.
        text_width: dimension of the hidden states of the text encoder.
        text_layers: number of layers of the text encoder.
        prompts: prompts from which sample images are generated during the training.
        init_from: folder of a saved pipeline from which the training starts; None starts from random weights.
        seed: integer that determines the order of the training data.
    """

    corpus: NonEmptyStr | None
    vae: NonEmptyStr
    output: NonEmptyStr
    batch_size: PositiveInt
    lr: NonNegativeFloat
    decay_from: UnitInterval
    drop_caption: UnitInterval
    channels: Annotated[Sequence[PositiveInt], MinLen(1)]
    text_width: PositiveInt
    text_layers: PositiveInt
    prompts: Annotated[Sequence[NonEmptyStr], MinLen(1)]
    init_from: NonEmptyStr | None = None
    seed: RandomSeed = 0

    def prepare(self, trainer: Trainer) -> None:
        check_corpus(self.corpus)
        self.pipeline = self.build()
        check_output(self.output)

    def run(self, trainer: Trainer) -> None:
        pipeline = self.pipeline
        cache = Path(trainer.default_root_dir) / "latents.safetensors"
        data = CaptionedLatents(self.corpus, pipeline.vae.eval(), pipeline.tokenizer, cache=cache)
        module = DenoiserTraining(
            pipeline, self.lr, trainer.max_steps, decay_from=self.decay_from, drop_caption=self.drop_caption
        )
        fit(trainer, module, ImageDataModule(data, Prompts(list(self.prompts)), self.batch_size, self.seed))
        save_pipeline(pipeline, self.output)
        report(trainer, {"steps": trainer.global_step, **final_loss(trainer)})

    def build(self) -> StableDiffusionPipeline:
        if self.init_from:
            return load_pretrained(StableDiffusionPipeline, "task.init_from", self.init_from)
        vae = load_pretrained(AutoencoderKL, "task.vae", self.vae)
        check_network(
            lambda: self._output(vae),
            channels=list(self.channels),
            text_width=self.text_width,
            text_layers=self.text_layers,
        )
        tokenizer = build_tokenizer(read_table(Path(self.corpus) / "captions.parquet")["caption"][:])
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=build_text_encoder(tokenizer, self.text_width, self.text_layers),
            tokenizer=tokenizer,
            unet=build_unet(vae, self.channels, self.text_width),
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def _output(self, vae: AutoencoderKL) -> Tensor:
        tokenizer = build_tokenizer(["a drawing"])
        tokens = tokenizer(["a drawing"], padding="max_length", return_tensors="pt").input_ids
        states = build_text_encoder(tokenizer, self.text_width, self.text_layers)(tokens)[0]
        unet = build_unet(vae, self.channels, self.text_width)
        side = unet.config.sample_size
        return unet(torch.zeros(1, unet.config.in_channels, side, side), 0, states).sample


def save_pipeline(pipeline: StableDiffusionPipeline, folder: str | Path) -> None:
    """Save the pipeline to ``folder``, with weights in float16."""
    pipeline.save_pretrained(folder)
    for name in ("unet", "text_encoder", "vae"):
        save_fp16(getattr(pipeline, name), Path(folder) / name)
