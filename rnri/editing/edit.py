"""``edit(pipe, inversion, prompt)``: a plain call of the pipeline, with attention processors of ours around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from diffusers import DiffusionPipeline
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
from torch import Tensor, nn

from rnri.editing.blend import WordMaps, blended
from rnri.editing.injection import FluxInjectionProcessor, Injection, SD3InjectionProcessor
from rnri.editing.prompt_to_prompt import PromptToPrompt, PromptToPromptProcessor
from rnri.editing.state import EditState
from rnri.editing.token_alignment import Prompt
from rnri.models.deterministic import scheduler_for
from rnri.models.eval_mode import eval_no_grad
from rnri.models.families import family_of
from rnri.models.family import Family, components
from rnri.models.sd3 import SD3Family
from rnri.models.unet import UNetFamily

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
"""Processors that compute plain attention, each in its way: ours compute the same."""

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
"""Arguments of the pipeline that ``edit`` gives itself, and what says them."""

UNSUPPORTED_KWARGS = (
    "num_images_per_prompt",
    "prompt_2",
    "prompt_3",
    "prompt_embeds",
    "true_cfg_scale",
    "ip_adapter_image",
)

Images = list[Image.Image] | Tensor | np.ndarray


class Seeds(Protocol):
    """What ``edit`` reads of an inversion, such as ``rnri.PipelineInversion``: the call that gives the images back."""

    prompts: Sequence[str]
    latents: Tensor  # [B,...] as the pipeline takes them
    image_size: tuple[int, int]  # pixels (H, W)

    @property
    def call(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class EditResult:
    """What an edit returns, in the pipeline's ``output_type``.

    Attributes:
        images: the edits, in the order of the prompts.
        reconstructions: what each inverted image's own prompt gives in the same call.
    """

    images: Images
    reconstructions: Images


def edit(
    pipe: DiffusionPipeline,
    inversion: Seeds,
    prompt: str | Sequence[str] | Sequence[Sequence[str]],
    edit_config: PromptToPrompt | Injection | None = None,
    **options: Any,
) -> EditResult:
    """The inverted image as ``prompt`` says it, otherwise unchanged.

    ::

        inversion = rnri.invert(pipe, image, "a photo of a cat", steps=20)
        edited = rnri.editing.edit(pipe, inversion, ["a photo of a dog", "a photo of a red cat"])

    It is one call of ``pipe`` with the source's prompt and all edits in a batch, under ``rnri.scheduler_for``; each
    edit is as if alone. ``pipe`` is left as it was found - scheduler, processors, modes, gradients - also after an
    exception.

    Args:
        pipe: a text-to-image pipeline of a known family.
        inversion: of one image or several, by ``rnri.api``.
        prompt: for one image an edited prompt, or several; for several images one of both for each.
        edit_config: ``PromptToPrompt`` for UNets, ``Injection`` for Stable Diffusion 3 and FLUX; None is their default.
        options: further arguments of the pipeline, such as ``output_type`` or ``callback_on_step_end``.

    Raises:
        ValueError: one sentence for bad input, before the network runs: words that are not in the prompts, a ``edit_config``
            that does not fit the network, IP-Adapters or other processors of one's own, options that ``edit`` sets.
    """
    family = family_of(pipe)
    _check_options(options)
    sources = list(inversion.prompts)
    edits = _as_edits(prompt, len(sources))
    rows = [*range(len(sources)), *(k for k, texts in enumerate(edits) for _ in texts)]
    texts = [*sources, *(text for each in edits for text in each)]
    state = EditState(rows, steps=lambda: pipe.num_timesteps)
    control = control_of(family, edit_config, state, texts, inversion.image_size)
    call = inversion.call
    call |= {"prompt": texts, "latents": inversion.latents[rows]}
    if "negative_prompt" in call:
        call["negative_prompt"] = [call["negative_prompt"][row] for row in rows]
    own = options.pop("callback_on_step_end", None)
    wanted = dict.fromkeys(["latents", *options.pop("callback_on_step_end_tensor_inputs", [])])
    with attn_processor(family.network, control.processor), _as_inverted(pipe):
        images = pipe(
            **call,
            **options,
            callback_on_step_end=_callback(state, control, own),
            callback_on_step_end_tensor_inputs=list(wanted),
            return_dict=False,
        )[0]
    return EditResult(images=images[len(sources) :], reconstructions=images[: len(sources)])


@dataclasses.dataclass(frozen=True)
class AttentionControl:
    """What acts in one call: the layers' processor, and what a step's end does to the latents."""

    processor: Any
    after_step: Callable[[Tensor], Tensor] = lambda latents: latents


def control_of(
    family: Family,
    edit_config: PromptToPrompt | Injection | None,
    state: EditState,
    texts: Sequence[str],
    image_size: tuple[int, int],
) -> AttentionControl:
    """How ``edit_config`` (None: the family's default) acts on a batch of ``texts``, for images ``(H, W)``.

    Raises:
        ValueError: ``edit_config`` does not fit the network, or names words that are absent.
    """
    wanted = PromptToPrompt if isinstance(family, UNetFamily) else Injection
    edit_config = wanted() if edit_config is None else edit_config
    if not isinstance(edit_config, wanted):
        raise ValueError(
            f"edit_config={type(edit_config).__name__} does not act on the {family.network_name} of {type(family.pipeline).__name__}: give "
            f"{wanted.__name__}, or leave it out."
        )
    if isinstance(edit_config, PromptToPrompt):
        return _prompt_to_prompt(family, edit_config, state, texts, image_size)
    processor = SD3InjectionProcessor if isinstance(family, SD3Family) else FluxInjectionProcessor
    height, width = _latent_size(family, image_size)
    patch = family.network.config.patch_size if isinstance(family, SD3Family) else family.patch
    return AttentionControl(processor(state, edit_config, (height // patch) * (width // patch)))


def _prompt_to_prompt(
    family: Family, edit_config: PromptToPrompt, state: EditState, texts: Sequence[str], image_size: tuple[int, int]
) -> AttentionControl:
    tokenizer = family.pipeline.tokenizer or family.pipeline.tokenizer_2
    read = [Prompt.tokenize(family.pipeline.maybe_convert_prompt(text, tokenizer), tokenizer) for text in texts]
    pairs = [(read[s], read[e]) for e, s in zip(state.edits.tolist(), state.sources.tolist(), strict=True)]
    words, maps = edit_config.words(pairs), None
    if edit_config.blend:
        maps = WordMaps(edit_config.blend_words(pairs, read), _latent_size(family, image_size))
    processor = PromptToPromptProcessor(state, words, edit_config.self_attention, maps)

    def blend(latents: Tensor) -> Tensor:
        if maps is None or state.progress < edit_config.blend_from:
            return latents
        return blended(latents, maps.region(edit_config.blend_threshold), *state.rows(len(latents), latents.device))

    return AttentionControl(processor, blend)


def _latent_size(family: Family, image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = image_size
    factor = 2 ** (len(family.pipeline.vae.config.block_out_channels) - 1)
    return height // factor, width // factor


@contextmanager
def attn_processor(network: nn.Module, processor: Any) -> Iterator[None]:
    """``network`` with ``processor`` in all its attention layers, for as long as the block runs.

    Raises:
        ValueError: one sentence, where a layer computes more than plain attention.
    """
    found = network.attn_processors
    other = next((p for p in found.values() if type(p) not in PLAIN_PROCESSORS), None)
    if other is not None:
        raise ValueError(
            f"the network has attention processors of {type(other).__name__}, which an edit would switch off: unload "
            "IP-Adapters and set the default processors first."
        )
    try:
        network.set_attn_processor(dict.fromkeys(found, processor))
        yield
    finally:
        network.set_attn_processor(dict(found))


@contextmanager
def _as_inverted(pipe: DiffusionPipeline) -> Iterator[None]:
    """``pipe`` as seeds are inverted: with the deterministic scheduler, in evaluation mode."""
    found = pipe.scheduler
    try:
        pipe.scheduler = scheduler_for(pipe)
        with eval_no_grad(*components(pipe).values()):
            yield
    finally:
        pipe.scheduler = found
        pipe.maybe_free_model_hooks()  # under CPU offload, as the pipeline's own calls end


def _callback(state: EditState, control: AttentionControl, own: Callable | None) -> Callable:
    """A step's end: the state moves on, latents are blended, and the user's own callback sees them so."""

    def at_end(pipe: DiffusionPipeline, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        state.step = step + 1
        latents = control.after_step(tensors["latents"])
        if own is None:
            return {"latents": latents}
        return {"latents": latents} | (own(pipe, step, timestep, tensors | {"latents": latents}) or {})

    return at_end


def _as_edits(prompt: object, images: int) -> list[list[str]]:
    """The edited prompts of each image."""
    given = prompt if images > 1 else [prompt]
    if images > 1 and (not isinstance(given, list | tuple) or len(given) != images):
        raise ValueError(
            f"prompt={prompt!r} must be a list with a text, or a list of texts, for each of {images} images."
        )
    edits = [[each] if isinstance(each, str) else each for each in given]
    for each in edits:
        if not isinstance(each, list | tuple) or not each or not all(isinstance(text, str) for text in each):
            raise ValueError(f"prompt={prompt!r} must give each image an edited prompt, or a list of at least one.")
    return [list(each) for each in edits]


def _check_options(options: dict[str, Any]) -> None:
    for name in options:
        if name in RESERVED_KWARGS:
            raise ValueError(f"{name} is what `{RESERVED_KWARGS[name]}` says: leave it out.")
        if name in UNSUPPORTED_KWARGS:
            raise ValueError(f"{name} would change the rows or words that an edit aligns: leave it out.")
