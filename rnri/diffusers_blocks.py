"""Inversion as a block of diffusers' modular pipelines: from an image to the latents that later blocks denoise."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import DiffusionPipeline, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from torch import Tensor

from rnri.api import PipelineInversion, invert


class InvertStep(ModularPipelineBlocks):
    """Inverts ``source_image`` and outputs its seed as ``latents``.

    ::

        blocks = SequentialPipelineBlocks.from_blocks_dict(TEXT2IMAGE_BLOCKS)
        blocks.sub_blocks.insert("invert", InvertStep(StableDiffusion3Pipeline), 0)
        pipe = blocks.init_pipeline()

    Args:
        pipeline: the standard pipeline class with the same components, which determines the model family.
    """

    def __init__(self, pipeline: type[DiffusionPipeline]) -> None:
        super().__init__()
        self.pipeline = pipeline

    @property
    def description(self) -> str:
        return "Inverts an image and its prompt to the latents that generate it (RNRI, arXiv 2312.12540)"

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("source_image", required=True, description="A PIL image, a list of them, or float tensors."),
            InputParam("prompt", required=True, description="Prompt of the image; one per image, or one for all."),
            InputParam("num_inference_steps", required=True, type_hint=int, description="Number of sampler steps."),
            InputParam("inversion_guidance", default=1.0, type_hint=float, description="1 disables guidance."),
            InputParam("inversion_method", default="accelerated", description="The method of rnri.invert."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("latents", type_hint=Tensor, description="The seeds, in the pipeline's layout of latents."),
            OutputParam("height", type_hint=int, description="Height of the image in pixels."),
            OutputParam("width", type_hint=int, description="Width of the image in pixels."),
            OutputParam("inversion", type_hint=PipelineInversion, description="Seeds, residuals and evaluations."),
        ]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Invert the image of ``state``; errors are those of ``rnri.invert``."""
        block = self.get_block_state(state)
        block.inversion = invert(
            self._standard_pipeline(components),
            block.source_image,
            block.prompt,
            steps=block.num_inference_steps,
            guidance=block.inversion_guidance,
            method=block.inversion_method,
        )
        block.latents = block.inversion.latents
        block.height, block.width = block.inversion.image_size
        self.set_block_state(state, block)
        return components, state

    def _standard_pipeline(self, components: Any) -> DiffusionPipeline:
        """Return the standard pipeline of the modular pipeline's components; missing required components are None."""
        arguments = {}
        for name, parameter in inspect.signature(self.pipeline.__init__).parameters.items():
            if name == "self":
                continue
            if hasattr(components, name):
                arguments[name] = getattr(components, name)
            elif parameter.default is inspect.Parameter.empty:
                arguments[name] = None
        return self.pipeline(**arguments)
