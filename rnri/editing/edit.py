"""The function ``edit``: calls a pipeline with attention processors that reuse the attention of the source image."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
    XFormersJointAttnProcessor,
)
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from PIL import Image
from torch import Tensor

from rnri.models.attention.editor import AttentionControl
from rnri.models.attention.injection import Injection
from rnri.models.attention.prompt_to_prompt import PromptToPrompt
from rnri.models.attention.state import EditState
from rnri.models.deterministic import scheduler_for
from rnri.models.eval_mode import eval_no_grad
from rnri.models.families import family_of
from rnri.models.family import Family, components
from rnri.models.finite import check_finite_latents, finite_decoding
from rnri.pipeline_inversion import PipelineInversion

PLAIN_PROCESSORS = (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
    XFormersJointAttnProcessor,
    FluxAttnProcessor,
)
"""Attention processors that compute standard attention; the editing processors can replace them."""

RESERVED_KWARGS = {
    "prompt": "prompt",
    "latents": "inversion",
    "num_inference_steps": "inversion",
    "timesteps": "inversion",
    "sigmas": "inversion",
    "guidance_scale": "inversion",
    "negative_prompt": "inversion",
    "height": "inversion",
    "width": "inversion",
}
"""Maps each pipeline argument that ``edit`` sets to the argument of ``edit`` that determines its value."""

UNSUPPORTED_KWARGS = (
    "num_images_per_prompt",
    "prompt_2",
    "prompt_3",
    "prompt_embeds",
    "true_cfg_scale",
    "ip_adapter_image",
    "clip_skip",
    "return_dict",
)
"""Pipeline arguments that would change the number of images, the text conditions or the type of the result."""

Images = list[Image.Image] | Tensor | np.ndarray


class Seeds(Protocol):
    """The attributes of an inversion (such as ``rnri.PipelineInversion``) that ``edit`` reads."""

    @property
    def prompts(self) -> Sequence[str]:
        """One prompt per image."""
        ...

    @property
    def latents(self) -> Tensor:
        """The seeds, ``[B,...]``, in the layout of the pipeline's argument ``latents``."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        ...

    @property
    def pipe_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline call that reproduces the inverted images."""
        ...


@dataclasses.dataclass(frozen=True)
class EditResult:
    """The images that ``edit`` returns, in the format that the pipeline's argument ``output_type`` determines.

    Attributes:
        images: the edited images, in the order of the edited prompts.
        reconstructions: the images that the same pipeline call generates from the source prompts, one per inverted
            image.
        images_replaced, reconstructions_replaced: for each image, whether the pipeline's safety checker replaced the
            image by a black image.
    """

    images: Images
    reconstructions: Images
    images_replaced: tuple[bool, ...]
    reconstructions_replaced: tuple[bool, ...]


def edit(
    pipe: DiffusionPipeline,
    inversion: Seeds,
    prompt: str | Sequence[str] | Sequence[Sequence[str]],
    edit_config: PromptToPrompt | Injection | None = None,
    **pipeline_kwargs: Any,
) -> EditResult:
    """Edit inverted images: generate each image from its seed with an edited prompt and the source image's attention.

    The attention of the source image preserves the content of the image that the edited prompt does not change.

    ::

        inversion = rnri.invert(pipe, image, "a photo of a cat", num_inference_steps=20)
        result = rnri.editing.edit(pipe, inversion, ["a photo of a dog", "a photo of a red cat"])

    The edit is one call of ``pipe`` with the scheduler of ``rnri.scheduler_for``. The batch of the pipeline call
    contains the source prompts and all edited prompts. An edit does not depend on the other edited prompts. The
    scheduler, the attention processors, the training modes and the ``requires_grad`` flags of ``pipe`` are restored,
    also after an exception.

    Args:
        pipe: a text-to-image pipeline of a supported family.
        inversion: inversion of one or several images, as returned by ``rnri.invert``.
        prompt: for one image, an edited prompt or a list of edited prompts; for several images, a list that has an
            edited prompt or a list of edited prompts for each image.
        edit_config: settings of the edit: ``PromptToPrompt`` for UNets, ``Injection`` for Stable Diffusion 3 and FLUX;
            None means the default settings of the model family.
        pipeline_kwargs: additional arguments of the pipeline call, such as ``output_type`` or ``callback_on_step_end``.
            A ``PipelineCallback`` of diffusers receives the tensors that its ``tensor_inputs`` names. A callback of
            diffusers that turns off guidance, such as ``SDCFGCutoffCallback``, keeps only the conditional embeddings of
            the last prompt; ``edit`` keeps the conditional embeddings of all prompts instead.

    Raises:
        ValueError: ``pipe`` samples with a different schedule than the inversion; ``edit_config`` does not fit the
            network or names words that the prompts do not contain; the pipeline has an IP-Adapter or custom attention
            processors; a seed is not finite; or a pipeline argument is reserved or unsupported. ValueError for an
            invalid argument is raised before the network runs. ValueError is also raised if the sampled latents or the
            output of the VAE are not finite.
    """
    family = family_of(pipe)
    _check_kwargs(pipe, pipeline_kwargs)
    if isinstance(inversion, PipelineInversion):
        inversion.check_pipeline(pipe)
    if not inversion.latents.isfinite().all():
        raise ValueError(
            "inversion.latents: must be finite, but the inversion diverged; invert with more steps or in float32."
        )
    source_prompts = list(inversion.prompts)
    edited_prompts = _edited_prompts(prompt, len(source_prompts))
    prompts = [*source_prompts, *(text for texts in edited_prompts for text in texts)]
    rows = [*range(len(source_prompts)), *(k for k, texts in enumerate(edited_prompts) for _ in texts)]
    state = EditState(rows, steps=lambda: pipe.num_timesteps)
    control = attention_control(family, edit_config, state, prompts, image_size=inversion.image_size)
    latents = inversion.latents[rows].to(family.latents_dtype)
    call_kwargs = inversion.pipe_kwargs | {"prompt": prompts, "latents": latents}
    if "negative_prompt" in call_kwargs:
        call_kwargs["negative_prompt"] = [call_kwargs["negative_prompt"][row] for row in rows]
    user_callback = pipeline_kwargs.pop("callback_on_step_end", None)
    callback_tensors = pipeline_kwargs.pop("callback_on_step_end_tensor_inputs", [])
    if isinstance(user_callback, PipelineCallback | MultiPipelineCallbacks):
        callback_tensors = user_callback.tensor_inputs
    with attn_processor(family.network, control.processor), _deterministic_eval(pipe), finite_decoding(pipe.vae):
        output = pipe(
            **call_kwargs,
            **pipeline_kwargs,
            callback_on_step_end=_callback(state, control, user_callback),
            callback_on_step_end_tensor_inputs=list(dict.fromkeys(["latents", *callback_tensors])),
        )
    images = output.images
    if pipeline_kwargs.get("output_type") == "latent":
        check_finite_latents(images)
    replaced = tuple(getattr(output, "nsfw_content_detected", None) or [False] * len(prompts))
    sources = len(source_prompts)
    return EditResult(
        images=images[sources:],
        reconstructions=images[:sources],
        images_replaced=replaced[sources:],
        reconstructions_replaced=replaced[:sources],
    )


def attention_control(
    family: Family,
    edit_config: PromptToPrompt | Injection | None,
    state: EditState,
    prompts: Sequence[str],
    *,
    image_size: tuple[int, int],
) -> AttentionControl:
    """Return the attention processor, and the change of the latents after each step, that ``edit_config`` defines.

    Args:
        family: model family of the pipeline that generates the images.
        edit_config: settings of the edit; None means the default settings of the model family.
        state: state of the edit, which all attention layers share.
        prompts: all prompts of the batch, source prompts and edited prompts.
        image_size: height and width ``(H, W)`` of the images in pixels.

    Raises:
        ValueError: ``edit_config`` does not fit the network, or names words that no prompt contains.
    """
    editor = family.attention_editor()
    if edit_config is None:
        edit_config = editor.config_class()
    if not isinstance(edit_config, editor.config_class):
        raise ValueError(
            f"edit_config={type(edit_config).__name__} does not apply to the {family.network_name} of "
            f"{type(family.pipeline).__name__}: pass {editor.config_class.__name__}, or leave edit_config out."
        )
    return editor.control(edit_config, state, prompts, image_size)


@contextmanager
def attn_processor(network: ModelMixin, processor: Any) -> Iterator[None]:
    """Use ``processor`` in all attention layers of ``network`` inside the ``with`` block; restore the layers on exit.

    Raises:
        ValueError: an attention layer has a processor that computes something other than standard attention.
    """
    processors = network.attn_processors
    custom = next((value for value in processors.values() if type(value) not in PLAIN_PROCESSORS), None)
    if custom is not None:
        raise ValueError(
            f"the network's attention layers use {type(custom).__name__}, which the edit would replace: unload the "
            "IP-Adapter, or set diffusers' default attention processors with set_attn_processor."
        )
    try:
        network.set_attn_processor(dict.fromkeys(processors, processor))
        yield
    finally:
        network.set_attn_processor(dict(processors))


@contextmanager
def _deterministic_eval(pipe: DiffusionPipeline) -> Iterator[None]:
    """Run ``pipe`` with the scheduler ``scheduler_for(pipe)`` and in evaluation mode inside the ``with`` block.

    An inversion uses the same scheduler and the same mode.
    """
    scheduler = pipe.scheduler
    try:
        pipe.scheduler = scheduler_for(pipe)
        with eval_no_grad(*components(pipe).values()):
            yield
    finally:
        pipe.scheduler = scheduler
        pipe.maybe_free_model_hooks()  # frees memory under CPU offload, as the pipeline does after a call


def _callback(state: EditState, control: AttentionControl, user_callback: Callable | None) -> Callable:
    """Return a function for the pipeline's argument ``callback_on_step_end``.

    After each sampling step, the function sets the step index of ``state``, changes the latents by
    ``control.after_step``, and calls ``user_callback``.
    """

    def on_step_end(pipe: DiffusionPipeline, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        state.step = step + 1
        latents = control.after_step(tensors["latents"])
        if user_callback is None:
            return {"latents": latents}
        tensors = tensors | {"latents": latents}
        returned = user_callback(pipe, step, timestep, dict(tensors)) or {}
        if isinstance(user_callback, PipelineCallback | MultiPipelineCallbacks):
            returned = {name: _all_rows(value, tensors.get(name), state.count) for name, value in returned.items()}
        return {"latents": latents} | returned

    return on_step_end


def _all_rows(returned: Any, original: Any, count: int) -> Any:
    """Return the embeddings of all ``count`` prompts if a callback of diffusers returned only the last row.

    Callbacks of diffusers that turn off guidance keep only the last row of the embeddings, which is the conditional
    row of one prompt. A batch of ``count`` prompts has ``count`` conditional rows, which are the last rows.

    Args:
        returned: value that the callback returned for one tensor name.
        original: the tensor that the callback received under this name.
        count: number of prompts in the batch.

    Returns:
        ``original[-count:]`` if ``returned`` equals the last row of ``original``; otherwise ``returned``.
    """
    is_last_row = isinstance(returned, Tensor) and isinstance(original, Tensor) and torch.equal(returned, original[-1:])
    return original[-count:] if is_last_row else returned


def _edited_prompts(prompt: object, images: int) -> list[list[str]]:
    """Return, for each image, the list of its edited prompts."""
    prompts_per_image = prompt if images > 1 else [prompt]
    if not isinstance(prompts_per_image, list | tuple) or len(prompts_per_image) != images:
        raise ValueError(
            f"prompt={prompt!r}: must be a list with one entry for each of the {images} images; an entry is an edited "
            "prompt or a list of edited prompts."
        )
    result = [[prompts] if isinstance(prompts, str) else prompts for prompts in prompts_per_image]
    for prompts in result:
        is_list = isinstance(prompts, list | tuple) and len(prompts) > 0
        if not is_list or not all(isinstance(text, str) for text in prompts):
            raise ValueError(
                f"prompt={prompt!r}: must have, for each image, an edited prompt or a non-empty list of edited prompts."
            )
    return [list(prompts) for prompts in result]


def _check_kwargs(pipe: DiffusionPipeline, pipeline_kwargs: dict[str, Any]) -> None:
    accepted = inspect.signature(pipe.__call__).parameters
    for name in pipeline_kwargs:
        if name in RESERVED_KWARGS:
            source = RESERVED_KWARGS[name]
            raise ValueError(f"{name} is determined by `{source}`, an argument of edit: leave {name} out.")
        if name in UNSUPPORTED_KWARGS:
            raise ValueError(f"{name} is an argument of the pipeline that edit does not support: leave {name} out.")
        if name not in accepted:
            similar = get_close_matches(name, accepted, n=1)
            remedy = f"did you mean {similar[0]}?" if similar else f"leave {name} out."
            raise ValueError(f"{name} is not an argument of {type(pipe).__name__}: {remedy}")
