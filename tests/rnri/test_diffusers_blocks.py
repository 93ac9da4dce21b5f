"""Inversion as a block of diffusers' modular pipelines."""

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from diffusers.modular_pipelines.flux.modular_blocks_flux import FluxAutoBlocks
from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import StableDiffusion3AutoBlocks

import rnri
from rnri.diffusers_blocks import InvertStep
from tests.pipelines import tiny_flux, tiny_sd3

FAMILIES = {
    "sd3": (tiny_sd3, StableDiffusion3AutoBlocks, StableDiffusion3Pipeline, {}),
    "flux": (tiny_flux, FluxAutoBlocks, FluxPipeline, {"guidance_scale": 1.0}),
}


@pytest.mark.parametrize(("factory", "blocks", "pipeline_class", "options"), FAMILIES.values(), ids=FAMILIES)
def test_later_blocks_regenerate_the_image(factory, blocks, pipeline_class, options):
    tiny = factory()
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in tiny.transformer.proj_out.parameters():
            weight.mul_(0.05)
    pipeline_blocks = blocks()
    pipeline_blocks.sub_blocks.insert("invert", InvertStep(pipeline_class), 0)
    pipe = pipeline_blocks.init_pipeline()
    pipe.update_components(**{name: part for name, part in tiny.components.items() if name in pipe.component_names})
    options = options | {"num_inference_steps": 3, "inversion_fit": "exact"}
    latents = pipe(prompt=["a cat"], source_image=image, output="latents", **options)
    expected = rnri.invert(tiny, image, "a cat", num_inference_steps=3)
    torch.testing.assert_close(latents.double(), expected.z0, rtol=0, atol=1e-3)
