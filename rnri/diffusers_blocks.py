"""A block for diffusers' modular pipelines that inverts an image to the initial noise for the later blocks."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import DiffusionPipeline, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from torch import Tensor

from rnri.api import PipelineInversion, invert


class InvertStep(ModularPipelineBlocks):
    """Inverts the block input ``source_image`` and outputs the initial noise (seed) as ``latents``.

    ::

        blocks = SequentialPipelineBlocks.from_blocks_dict(TEXT2IMAGE_BLOCKS)
        blocks.sub_blocks.insert("invert", InvertStep(StableDiffusion3Pipeline), 0)
        pipe = blocks.init_pipeline()

    Args:
        pipeline: the standard pipeline class that has the same components as the modular pipeline. The pipeline class
            determines the model family.
    """

    def __init__(self, pipeline: type[DiffusionPipeline]) -> None:
        super().__init__()
        self.pipeline = pipeline

    @property
    def description(self) -> str:
        return "Computes the initial latents from which the pipeline regenerates an image (RNRI, arXiv 2312.12540)"

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam(
                "source_image", required=True, description="A PIL image, a list of PIL images, or float tensors."
            ),
            InputParam("prompt", required=True, description="One prompt per image, or one prompt for all images."),
            InputParam("num_inference_steps", required=True, type_hint=int, description="Number of sampler steps."),
            InputParam(
                "inversion_guidance", default=1.0, type_hint=float, description="Guidance scale; 1 disables guidance."
            ),
            InputParam(
                "inversion_method", default="accelerated", description="Name of an inversion method in rnri.METHODS."
            ),
            InputParam(
                "inversion_fit",
                default="crop",
                description="How images are fitted to the model's image size: crop, pad, stretch or exact.",
            ),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("latents", type_hint=Tensor, description="The seeds, in the layout of the pipeline's latents."),
            OutputParam("height", type_hint=int, description="Height of the image in pixels."),
            OutputParam("width", type_hint=int, description="Width of the image in pixels."),
            OutputParam(
                "inversion",
                type_hint=PipelineInversion,
                description="Result of rnri.invert: the seeds, the residuals and the numbers of network evaluations.",
            ),
        ]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Invert the images in ``state`` by ``rnri.invert``, and store the outputs in ``state``."""
        block = self.get_block_state(state)
        block.inversion = invert(
            self._standard_pipeline(components),
            block.source_image,
            block.prompt,
            num_inference_steps=block.num_inference_steps,
            guidance_scale=block.inversion_guidance,
            method=block.inversion_method,
            fit=block.inversion_fit,
            round_trip=False,
        )
        block.latents = block.inversion.latents
        block.height, block.width = block.inversion.image_size
        self.set_block_state(state, block)
        return components, state

    def _standard_pipeline(self, components: Any) -> DiffusionPipeline:
        """Return a standard pipeline with the components of the modular pipeline.

        Components that the standard pipeline requires but the modular pipeline lacks are set to None.
        """
        arguments = {}
        for name, parameter in inspect.signature(self.pipeline.__init__).parameters.items():
            if name == "self":
                continue
            if hasattr(components, name):
                arguments[name] = getattr(components, name)
            elif parameter.default is inspect.Parameter.empty:
                arguments[name] = None
        return self.pipeline(**arguments)
