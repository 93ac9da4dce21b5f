"""Pipelines with missing, unsupported or mismatched components are rejected."""

import pytest
from diffusers import AutoencoderTiny, StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline
from transformers import CLIPTextConfig, CLIPTextModel

from rnri import LatentDiffusion
from tests.pipelines import tiny_flux, tiny_sd3, tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.rnri.models.checkpoints import assert_rejected


def test_text_encoder_of_another_width():
    pipe = tiny_stable_diffusion()
    config = CLIPTextConfig(**{**pipe.text_encoder.config.to_dict(), "hidden_size": 64})
    pipe.text_encoder = CLIPTextModel(config)
    assert_rejected(lambda: LatentDiffusion(pipe), "cross_attention_dim=32", "64")


def test_projected_text_embeddings():
    pipe = tiny_stable_diffusion(unet={"encoder_hid_dim": 32, "cross_attention_dim": 24})
    assert LatentDiffusion(pipe).predictor(["a cat"]) is not None
    pipe = tiny_stable_diffusion(unet={"encoder_hid_dim": 16})
    assert_rejected(lambda: LatentDiffusion(pipe), "encoder_hid_dim=16", "32")


@pytest.mark.parametrize(
    ("make_pipeline", "field"),
    [
        (tiny_stable_diffusion_xl, "cross_attention_dim"),
        (tiny_sd3, "joint_attention_dim"),
        (tiny_sd3, "pooled_projection_dim"),
        (tiny_flux, "joint_attention_dim"),
        (tiny_flux, "pooled_projection_dim"),
    ],
)
def test_two_text_encoders_of_another_width(make_pipeline, field):
    pipe = make_pipeline()
    network = getattr(pipe, "unet", None) or pipe.transformer
    network.register_to_config(**{field: 40})
    assert_rejected(lambda: LatentDiffusion(pipe), f"{field}=40")


@pytest.mark.parametrize(
    ("changes", "substrings"),
    [
        ({"in_channels": 9}, ("in_channels=9", "inpainting", "supported model")),
        ({"in_channels": 5}, ("in_channels=5", "depth", "supported model")),
        ({"out_channels": 8}, ("out_channels=8", "supported model")),
        ({"num_class_embeds": 10}, ("num_class_embeds=10", "supported model")),
        (
            {"encoder_hid_dim_type": "ip_image_proj", "encoder_hid_dim": 32},
            ("encoder_hid_dim_type='ip_image_proj'", "IP-Adapter", "supported model"),
        ),
    ],
)
def test_unets_with_other_inputs(changes, substrings):
    pipe = tiny_stable_diffusion()
    pipe.unet.register_to_config(**changes)
    assert_rejected(lambda: LatentDiffusion(pipe), *substrings)


def test_inpainting_unet():
    pipe = tiny_stable_diffusion(unet={"in_channels": 9})
    assert_rejected(lambda: LatentDiffusion(pipe), "in_channels=9")


def test_sdxl_refiner():
    pipe = tiny_stable_diffusion_xl()
    pipe.unet.register_to_config(projection_class_embeddings_input_dim=5 * 8 + 32)
    assert_rejected(
        lambda: LatentDiffusion(pipe), "projection_class_embeddings_input_dim=72", "refiner", "supported model"
    )


def test_sdxl_unet_in_stable_diffusion_pipeline():
    pipe = tiny_stable_diffusion()
    pipe.unet.register_to_config(addition_embed_type="text_time")
    assert_rejected(lambda: LatentDiffusion(pipe), "addition_embed_type", "StableDiffusionXLPipeline")


def test_autoencoder_without_posterior():
    pipe = tiny_stable_diffusion()
    pipe.vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    assert_rejected(lambda: LatentDiffusion(pipe), "AutoencoderTiny", "AutoencoderKL")


@pytest.mark.parametrize("component", ["text_encoder", "tokenizer", "vae", "unet", "scheduler"])
def test_component_is_none(component):
    pipe = tiny_stable_diffusion()
    setattr(pipe, component, None)
    assert_rejected(lambda: LatentDiffusion(pipe), f"lacks its {component}")


def test_second_text_encoder_is_none():
    pipe = tiny_stable_diffusion_xl()
    pipe.text_encoder_2 = None
    assert_rejected(lambda: LatentDiffusion(pipe), "lacks its text_encoder_2")


@pytest.mark.parametrize(
    ("make_pipeline", "pipeline_class", "similar"),
    [
        (tiny_stable_diffusion, StableDiffusionImg2ImgPipeline, "StableDiffusionPipeline("),
        (tiny_stable_diffusion_xl, StableDiffusionXLImg2ImgPipeline, "StableDiffusionXLPipeline("),
    ],
)
def test_unsupported_pipeline_class(make_pipeline, pipeline_class, similar):
    components = {name: value for name, value in make_pipeline().components.items() if name != "image_encoder"}
    options = {"requires_safety_checker": False} if "safety_checker" in components else {}
    pipe = pipeline_class(**components, **options)
    expected = f"{pipeline_class.__name__} is not a supported text-to-image pipeline"
    assert_rejected(lambda: LatentDiffusion(pipe), expected, similar)
