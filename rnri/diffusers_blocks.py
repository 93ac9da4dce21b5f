"""Inversion as a block of diffusers' modular pipelines: from a picture to the latents that the next blocks denoise."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import DiffusionPipeline, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from torch import Tensor

from rnri.api import PipelineInversion, invert


class InvertStep(ModularPipelineBlocks):
    """Inverts ``source_image`` and hands its seed on as ``latents``.

    ::

        blocks = SequentialPipelineBlocks.from_blocks_dict(TEXT2IMAGE_BLOCKS)
        blocks.sub_blocks.insert("invert", InvertStep(StableDiffusion3Pipeline), 0)
        pipe = blocks.init_pipeline()

    Args:
        pipeline: the classic pipeline of the same components, which says what family they are.
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
            InputParam("prompt", required=True, description="What the image shows; one an image, or one for all."),
            InputParam("num_inference_steps", required=True, type_hint=int, description="Of inversion and sampling."),
            InputParam("inversion_guidance", default=1.0, type_hint=float, description="1 is off."),
            InputParam("inversion_method", default="accelerated", description="As rnri.api's method."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("latents", type_hint=Tensor, description="The seeds, as the pipeline takes latents."),
            OutputParam("height", type_hint=int, description="Of the image, in pixels."),
            OutputParam("width", type_hint=int, description="Of the image, in pixels."),
            OutputParam("inversion", type_hint=PipelineInversion, description="Residuals and evaluations by image."),
        ]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Errors are those of ``rnri.api``."""
        block = self.get_block_state(state)
        names = [name for name in inspect.signature(self.pipeline.__init__).parameters if name != "self"]
        parts = {name: getattr(components, name) for name in names if hasattr(components, name)}
        needed = {
            name: None for name, parameter in inspect.signature(self.pipeline.__init__).parameters.items()
            if name not in ("self", *parts) and parameter.default is inspect.Parameter.empty
        }  # fmt: skip
        block.inversion = invert(
            self.pipeline(**parts, **needed), block.source_image, block.prompt, steps=block.num_inference_steps,
            guidance=block.inversion_guidance, method=block.inversion_method,
        )  # fmt: skip
        block.latents, (block.height, block.width) = block.inversion.latents, block.inversion.image_size
        self.set_block_state(state, block)
        return components, state
