"""A small corpus and a tiny pipeline for the tests of the trainings."""

import shutil

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from experiments.pretrain.denoiser import build_scheduler, build_text_encoder, build_tokenizer

CONCEPTS = 12


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Drawings of the first concepts and some of their captions."""
    folder = tmp_path_factory.mktemp("corpus")
    for split in ("corpus", "reference", "fid"):
        name = f"drawings-{split}.parquet"
        pq.write_table(pq.read_table(f"assets/emoji/{name}", filters=[("concept_id", "<", CONCEPTS)]), folder / name)
    shown = pq.read_table(folder / "drawings-corpus.parquet")["image_id"].to_pylist()
    captions = pq.read_table("assets/emoji/captions.parquet", filters=[("image_id", "in", shown)])
    pq.write_table(captions.slice(0, 24), folder / "captions.parquet")
    shutil.copy("assets/emoji/concepts.csv", folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory, corpus):
    """A tiny Stable Diffusion pipeline with random weights, in a folder."""
    torch.manual_seed(0)
    captions = pq.read_table(corpus / "captions.parquet")["caption"].to_pylist()
    tokenizer = build_tokenizer([*captions, "a drawing of a camel"])
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4), layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=64,
        mid_block_add_attention=False,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(8, 16), layers_per_block=1,
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=build_text_encoder(tokenizer, 16, 2), tokenizer=tokenizer, unet=unet,
        scheduler=build_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline(base):
    return StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
