"""Trains the small CLIP model for the semantic loss of SeedSelect. No evaluation metric uses this CLIP model."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from experiments.data.augmentations import random_affine
from experiments.data.backgrounds import AUGMENTATIONS, Augmentation
from experiments.data.build_emoji import TEMPLATES
from experiments.data.emoji import AugmentedEmojiImages, EmojiImages, check_corpus, read_table
from experiments.pretrain.denoiser import MAX_TOKENS, build_tokenizer
from experiments.pretrain.training import (
    ImageDataModule,
    TrainingTask,
    adamw,
    check_network,
    check_output,
    fit,
    report,
    save_fp16,
)
from rnri.validation import NonEmptyStr, dataclass

PROMPT = "a drawing of {phrase}"


class CaptionedEmojiImages(Dataset):
    """Images of the drawings in the split ``corpus``, each with a random caption among the captions of the image.

    An item is ``(image [3, H, W] in [0, 1], token ids [L] of the caption, concept_id)``.
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
    """Training of CLIP with its symmetric contrastive loss. Two images of the same concept are not a negative pair.

    Args:
        clip: the model to train.
        prompts: token ids ``[P, L]`` of one prompt per concept, with which the zero-shot accuracy is measured.
        lr: learning rate.
        steps: number of training steps.
    """

    def __init__(self, clip: CLIPModel, prompts: Tensor, lr: float, steps: int) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("prompts", prompts, persistent=False)
        self.lr, self.steps = lr, steps

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> Tensor:
        images, tokens, concepts = batch
        pixels = normalize(random_affine(images), OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        output = self.clip(input_ids=tokens, pixel_values=pixels)
        logits = output.logits_per_image.float()
        same = concepts[:, None] == concepts[None, :]
        logits = logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), -torch.inf)
        target = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        hits = zero_shot(self.clip, batch[0], self.prompts) == batch[1]
        self.log("zero_shot", hits.float().mean(), prog_bar=True, batch_size=len(hits))

    def configure_optimizers(self) -> dict:
        return adamw(self, self.lr, self.steps, warmup=200, decay_from=0.1, weight_decay=0.1)


@torch.no_grad()
def zero_shot(clip: CLIPModel, images: Tensor, prompts: Tensor) -> Tensor:
    """Return the index of the prompt with the highest CLIP similarity to each image, ``[B]``.

    Args:
        clip: CLIP model.
        images: ``[B, 3, H, W]`` in [0, 1].
        prompts: token ids of the prompts, ``[P, L]``.
    """
    pixels = normalize(images, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    return clip(input_ids=prompts, pixel_values=pixels).logits_per_image.argmax(-1)


@dataclass
class PretrainClip(TrainingTask):
    """The task of ``experiment=pretrain_clip``: trains a CLIP model and measures its zero-shot accuracy.

    Args:
        corpus: folder of the emoji corpus.
        output: folder to which the trained model is saved.
        batch_size: number of pairs of image and caption per training step.
        lr: learning rate.
        width: dimension of the hidden states of both encoders and of the joint embedding.
        layers: number of layers of the image encoder; the text encoder has two layers.
        patch_size: side of an image patch in pixels.
    """

    corpus: NonEmptyStr | None
    output: NonEmptyStr
    batch_size: PositiveInt
    lr: PositiveFloat
    width: PositiveInt
    layers: PositiveInt
    patch_size: PositiveInt

    def prepare(self, trainer: Trainer) -> None:
        check_corpus(self.corpus)
        check_network(self._output, width=self.width, layers=self.layers, patch_size=self.patch_size)
        check_output(self.output)

    def _output(self) -> Tensor:
        tokenizer = build_tokenizer(["a drawing"])
        return zero_shot(self.build(tokenizer), torch.zeros(1, 3, 64, 64), tokenize(tokenizer, ["a drawing"]))

    def run(self, trainer: Trainer) -> None:
        captions = list(read_table(f"{self.corpus}/captions.parquet")["caption"])
        tokenizer = build_tokenizer(captions)
        drawings = EmojiImages(self.corpus, ["corpus"])
        phrases = {row["concept_id"]: row["phrase"] for row in drawings.rows}
        prompts = tokenize(tokenizer, [PROMPT.format(phrase=phrases[k]) for k in sorted(phrases)])
        unseen = AugmentedEmojiImages(EmojiImages(self.corpus, ["reference", "fid"]), augmentations=1)
        clip = self.build(tokenizer)
        module = ContrastiveModel(clip, prompts, self.lr, trainer.max_steps)
        fit(trainer, module, ImageDataModule(CaptionedEmojiImages(drawings, tokenizer), unseen, self.batch_size))
        self.save(clip.eval(), tokenizer)
        hits = torch.cat([zero_shot(clip, x, prompts) == y for x, y in DataLoader(unseen, 64)])
        report(trainer, {"zero_shot_unseen": hits.float().mean().item(), "n": len(hits)})

    def build(self, tokenizer: CLIPTokenizer) -> CLIPModel:
        tower = {
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
        }
        text = tower | {
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": MAX_TOKENS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        vision = tower | {"image_size": 64, "patch_size": self.patch_size}
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=self.width))

    def save(self, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
        CLIPProcessor(processor, tokenizer).save_pretrained(self.output)
        save_fp16(clip, self.output)
