"""Training of the CLIP model for the semantic loss of SeedSelect. No evaluation metric uses this CLIP model.

The training of the image encoder starts from ImageNet weights. With an image encoder that was trained only on the emoji
corpus, SeedSelect could find images whose features match the reference images, but which do not show the concept.
"""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    TimmWrapperConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from experiments.data.augmentations import jitter
from experiments.data.backgrounds import AUGMENTATIONS, Augmentation
from experiments.data.build_emoji import TEMPLATES
from experiments.data.emoji import AugmentedEmojiImages, EmojiImages, check_corpus, read_table
from experiments.pretrain.classifier import load_in_order
from experiments.pretrain.denoiser import MAX_TOKENS, build_tokenizer
from experiments.pretrain.training import (
    ImageDataModule,
    TrainingTask,
    adamw,
    check_network,
    check_output,
    fit,
    report,
    reseed_resumed,
    save_fp16,
)
from rnri.validation import NonEmptyStr, dataclass
from seedselect.features import ClipFeatures

PROMPT = "a drawing of {phrase}"
TEXT_HEADS = 4  # number of attention heads of the text encoder
TEXT_LAYERS = 2  # number of layers of the text encoder
MAX_NOISE = 0.1
"""Largest standard deviation of the Gaussian noise that is added to the training images."""


class CaptionedEmojiImages(Dataset):
    """Images of drawings, each with a caption from a random template.

    An item of the dataset is ``(image [3, H, W] in [0, 1], token ids [L] of the caption, concept_id)``.
    """

    def __init__(self, drawings: EmojiImages, tokenizer: CLIPTokenizer) -> None:
        self.images = AugmentedEmojiImages(drawings)
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        image, concept = self.images[index]
        row = self.images.drawings.rows[index // AUGMENTATIONS]
        background = Augmentation.from_seed(index % AUGMENTATIONS).background
        template = TEMPLATES[torch.randint(len(TEMPLATES), ()).item()][0]
        caption = template.format(phrase=row["phrase"], style=row["style"], background=background)
        return image, tokenize(self.tokenizer, [caption])[0], concept


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Return the token ids of ``captions``, padded or truncated to ``[B, MAX_TOKENS]``."""
    options = {"padding": "max_length", "max_length": MAX_TOKENS, "truncation": True, "return_tensors": "pt"}
    return tokenizer(captions, **options).input_ids


class ContrastiveModel(LightningModule):
    """Training of CLIP with two losses of equal weight.

    The first loss is CLIP's symmetric contrastive loss between the images and the captions of a batch. An image and a
    caption of the same concept are not a negative pair. The second loss is the cross-entropy of classifying the images
    by their similarity to one prompt per concept.

    Args:
        clip: the model to train, with the preprocessing of its images.
        prompts: token ids ``[P, L]`` of one prompt for each of P concepts; row k is the prompt of concept k.
        lr: learning rate of the text encoder and of the projections.
        body_lr: learning rate of the image encoder.
        steps: number of training steps.
    """

    def __init__(self, clip: ClipFeatures, prompts: Tensor, lr: float, body_lr: float, *, steps: int) -> None:
        super().__init__()
        self.model = clip.model.requires_grad_(True).train()
        self.clip = clip
        self.register_buffer("prompts", prompts, persistent=False)
        self.lr = lr
        self.body_lr = body_lr
        self.steps = steps

    def on_train_start(self) -> None:
        reseed_resumed(self)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> Tensor:
        images, tokens, concepts = batch
        image_features = self.clip(add_noise(jitter(images)))
        scale = self.model.logit_scale.exp().clamp_max(100)
        contrastive = self._contrastive_loss(scale * image_features @ self._text(tokens).T, concepts)
        logits = scale * image_features @ self._text(self.prompts).T
        classification = F.cross_entropy(logits, concepts, label_smoothing=0.1)
        loss = (contrastive + classification) / 2
        self.log("loss", loss, prog_bar=True)
        return loss

    @staticmethod
    def _contrastive_loss(logits: Tensor, concepts: Tensor) -> Tensor:
        same = concepts[:, None] == concepts[None, :]
        other_pair = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        logits = logits.masked_fill(other_pair, -torch.inf)
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def _text(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.model.get_text_features(tokens).pooler_output.float(), dim=-1)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        hits = self.zero_shot(batch[0]) == batch[1]
        self.log("zero_shot", hits.float().mean(), prog_bar=True, batch_size=len(hits))

    @torch.no_grad()
    def zero_shot(self, images: Tensor) -> Tensor:
        """Return, for each of ``images [B, 3, H, W]``, the index of the concept with the most similar prompt.

        The shape of the result is ``[B]``.
        """
        return (self.clip(images) @ self._text(self.prompts).T).argmax(-1)

    def configure_optimizers(self) -> dict:
        body = list(self.model.vision_model.parameters())
        in_body = {id(parameter) for parameter in body}
        head = [parameter for parameter in self.model.parameters() if id(parameter) not in in_body]
        groups = [{"params": head, "lr": self.lr}, {"params": body, "lr": self.body_lr}]
        warmup = min(100, max(self.steps // 10, 1))
        return adamw(groups, self.lr, self.steps, warmup=warmup, decay_from=0.1, weight_decay=0.05)


def add_noise(images: Tensor) -> Tensor:
    """Add Gaussian noise to ``images [B, 3, H, W]``, with a random standard deviation up to ``MAX_NOISE`` per image."""
    std = MAX_NOISE * torch.rand(len(images), 1, 1, 1).to(images)
    return (images + std * torch.randn_like(images)).clamp(0, 1)


@dataclass
class PretrainClip(TrainingTask):
    """The task of ``experiment=pretrain_clip``: trains a CLIP model and measures its zero-shot accuracy.

    The model is a ``VisionTextDualEncoderModel`` of ``transformers``: a timm network for images and a CLIP text
    encoder. The training images are the splits ``corpus`` and ``fid`` of the emoji corpus. The accuracy is measured on
    the split ``reference``.

    Args:
        corpus: folder of the emoji corpus.
        output: folder to which the trained model is saved.
        batch_size: number of pairs of image and caption per training step.
        lr: learning rate of the text encoder and of the projections.
        body_lr: learning rate of the image encoder.
        architecture: name of the timm model that is the image encoder.
        init_from: ``.pth`` file with the initial weights of the image encoder, whose tensors have the same order as the
            tensors of the timm model. None: the training starts from random weights.
        image_size: side in pixels of the input images of the image encoder.
        width: dimension of the hidden states of the text encoder and of the joint embedding.
    """

    corpus: NonEmptyStr | None
    output: NonEmptyStr
    batch_size: PositiveInt
    lr: PositiveFloat
    body_lr: PositiveFloat
    architecture: NonEmptyStr
    init_from: NonEmptyStr | None
    image_size: PositiveInt
    width: PositiveInt

    def prepare(self, trainer: Trainer) -> None:
        check_corpus(self.corpus)
        check_network(self._output, architecture=self.architecture, image_size=self.image_size, width=self.width)
        if self.init_from is not None:
            load_in_order(timm.create_model(self.architecture), self.init_from)
        check_output(self.output)

    def _output(self) -> Tensor:
        clip = self.build(build_tokenizer(["a drawing"]))
        return clip(torch.zeros(1, 3, 64, 64)) @ clip.text(["a drawing"]).T

    def run(self, trainer: Trainer) -> None:
        captions = read_table(f"{self.corpus}/captions.parquet")["caption"][:]
        tokenizer = build_tokenizer(captions)
        drawings = EmojiImages(self.corpus, ["corpus", "fid"])
        phrases = {row["concept_id"]: row["phrase"] for row in drawings.rows}
        prompts = tokenize(tokenizer, [PROMPT.format(phrase=phrases[k]) for k in sorted(phrases)])
        unseen = AugmentedEmojiImages(EmojiImages(self.corpus, ["reference"]), augmentations=1)
        clip = self.build(tokenizer)
        module = ContrastiveModel(clip, prompts, self.lr, self.body_lr, steps=trainer.max_steps)
        fit(trainer, module, ImageDataModule(CaptionedEmojiImages(drawings, tokenizer), unseen, self.batch_size))
        module.eval()
        self.save(clip)
        hits = torch.cat([module.zero_shot(x) == y for x, y in DataLoader(unseen, 64)])
        report(trainer, {"zero_shot_unseen": hits.float().mean().item(), "n": len(hits)})

    def build(self, tokenizer: CLIPTokenizer) -> ClipFeatures:
        """Return the untrained CLIP model with the preprocessing of its images."""
        network = timm.create_model(self.architecture)
        if self.init_from is not None:
            load_in_order(network, self.init_from)
        mean, std = _channel_statistics(network)
        network.reset_classifier(0)
        model = VisionTextDualEncoderModel(self._config(network, tokenizer))
        model.vision_model.timm_model.load_state_dict(network.state_dict())
        model.vision_model.to(memory_format=torch.channels_last)  # faster on CPUs
        return ClipFeatures(model, tokenizer, mean=mean, std=std)

    def _config(self, network: nn.Module, tokenizer: CLIPTokenizer) -> VisionTextDualEncoderConfig:
        text = CLIPTextConfig(
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=TEXT_HEADS,
            vocab_size=len(tokenizer),
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        vision = TimmWrapperConfig(
            architecture=self.architecture,
            do_pooling=True,
            hidden_size=network.head_hidden_size,
            image_size=self.image_size,
            num_labels=0,
        )
        return VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=self.width)

    def save(self, clip: ClipFeatures) -> None:
        size = {"height": self.image_size, "width": self.image_size}
        processor = CLIPImageProcessor(
            size={"shortest_edge": self.image_size},
            crop_size=size,
            image_mean=clip.mean.flatten().tolist(),
            image_std=clip.std.flatten().tolist(),
        )
        VisionTextDualEncoderProcessor(processor, clip.tokenizer).save_pretrained(self.output)
        save_fp16(clip.model, self.output)


def _channel_statistics(network: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and standard deviation of the color channels with which the timm model normalizes images."""
    config = timm.data.resolve_model_data_config(network)
    return config["mean"], config["std"]
