"""Edits of transformers inject the source's queries and keys, or values, and change nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rnri.editing import Injection, PromptToPrompt, edit
from rnri.editing.edit import attn_processor
from rnri.models.attention.injection import FluxInjectionProcessor, SD3InjectionProcessor
from rnri.models.attention.state import EditState
from tests.pipelines import tiny_flux, tiny_sd3
from tests.rnri.editing.test_edit import STEPS, Seeds, quiet, seeds

PIPELINES = {"sd3": tiny_sd3, "flux": tiny_flux}
CALLS = [("sd3", 1.0), ("sd3", 4.0), ("flux", 3.5)]


@pytest.fixture(scope="module")
def pipes():
    return {name: quiet(make_pipeline()) for name, make_pipeline in PIPELINES.items()}


def packed_seeds(name: str, *prompts: str, **options) -> Seeds:
    result = seeds(*prompts, **options)
    if name == "flux":
        patches = result.latents.reshape(len(prompts), 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5)
        result.latents = patches.reshape(-1, 16, 16)
    return result


def latents(pipe, inversion, prompt, edit_config=None) -> tuple[Tensor, Tensor]:
    result = edit(pipe, inversion, prompt, edit_config, output_type="latent")
    return result.images, result.reconstructions


@pytest.mark.parametrize("name, guidance", CALLS)
@pytest.mark.parametrize("what", ["queries_keys", "values"])
def test_source_is_bit_identical_and_edit_differs(pipes, name, guidance, what):
    pipe = pipes[name]
    inversion = packed_seeds(name, "a cat x", guidance=guidance)
    edits, reconstructions = latents(pipe, inversion, "a dog x", Injection(what=what, share=0.5))
    rows = inversion.latents.expand(2, *inversion.latents.shape[1:])
    without_injection = pipe(
        **inversion.pipe_kwargs | {"prompt": ["a cat x", "a dog x"], "latents": rows}, output_type="latent"
    ).images
    assert torch.equal(reconstructions, without_injection[:1])
    assert (edits - without_injection[1:]).abs().max() > 1e-4


@pytest.mark.parametrize("name, guidance", CALLS)
@pytest.mark.parametrize("what", ["queries_keys", "values"])
def test_equal_prompts_give_the_reconstruction(pipes, name, guidance, what):
    pipe = pipes[name]
    inversion = packed_seeds(name, "a cat x", guidance=guidance)
    edits, reconstructions = latents(pipe, inversion, "a cat x", Injection(what=what, share=1.0))
    torch.testing.assert_close(edits, reconstructions)
    torch.testing.assert_close(
        reconstructions, pipe(**inversion.pipe_kwargs, output_type="latent").images, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name, guidance", CALLS)
def test_zero_share_only_changes_the_prompt(pipes, name, guidance):
    pipe = pipes[name]
    inversion = packed_seeds(name, "a cat x", guidance=guidance)
    edits, _ = latents(pipe, inversion, "a dog x", Injection(share=0.0))
    without_injection = pipe(**inversion.pipe_kwargs | {"prompt": ["a dog x"]}, output_type="latent").images
    torch.testing.assert_close(edits, without_injection, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, guidance", CALLS)
def test_edits_of_a_batch_are_independent(pipes, name, guidance):
    pipe = pipes[name]
    inversion = packed_seeds(name, "a cat", "b", guidance=guidance)
    edit_config = Injection(share=0.5)
    edits, _ = latents(pipe, inversion, [["a dog", "a cow"], "c"], edit_config)
    single = [Seeds((p,), inversion.latents[k : k + 1], guidance) for k, p in enumerate(inversion.prompts)]
    single_edits = [
        latents(pipe, single[k], text, edit_config)[0] for k, text in ((0, "a dog"), (0, "a cow"), (1, "c"))
    ]
    torch.testing.assert_close(edits, torch.cat(single_edits), rtol=1e-4, atol=1e-4)


def attention_layer(pipe, single: bool):
    transformer = pipe.transformer
    if single:
        return transformer.single_transformer_blocks[0].attn
    return transformer.transformer_blocks[0].attn


@pytest.mark.parametrize("name, single", [("sd3", False), ("flux", False), ("flux", True)])
@pytest.mark.parametrize("what", ["queries_keys", "values"])
def test_layer_equals_reference(name, single, what):
    """Image tokens have the source's queries and keys, or values; text tokens have those of the edit."""
    pipe = PIPELINES[name]().to(torch.float64)
    attn = attention_layer(pipe, single)
    width = 32
    text_tokens = 5
    image_tokens = 16
    random = torch.Generator().manual_seed(2)
    image, text = (torch.randn(2, n, width, generator=random, dtype=torch.float64) for n in (image_tokens, text_tokens))
    state = EditState([0, 0], lambda: STEPS)
    processor_class = SD3InjectionProcessor if name == "sd3" else FluxInjectionProcessor
    processor = processor_class(state, Injection(what=what, share=0.5), image_tokens)
    streams = [torch.cat([text, image], dim=1)] if single else [image, text]
    expected = reference_layer(attn, streams, what, image_tokens)
    torch.testing.assert_close(as_list(processor(attn, *streams)), expected, rtol=1e-10, atol=1e-12)
    state.step = 2  # after the share
    expected = as_list(attn.get_processor()(attn, *streams))
    torch.testing.assert_close(as_list(processor(attn, *streams)), expected, rtol=1e-10, atol=1e-12)


def as_list(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def reference_layer(attn, streams, what, image_tokens) -> list[Tensor]:
    added = {"q": "add_q_proj", "k": "add_k_proj", "v": "add_v_proj"}
    projections = {}
    for name in "qkv":
        layers = [getattr(attn, f"to_{name}"), *([getattr(attn, added[name])] if len(streams) > 1 else [])]
        heads = [
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, x in zip(layers, streams, strict=True)
        ]
        if name != "v":
            norms = [getattr(attn, f"norm_{name}"), getattr(attn, f"norm_added_{name}", None)]
            heads = [head if norm is None else norm(head) for norm, head in zip(norms, heads, strict=False)]
        if name in what.replace("queries_keys", "qk").replace("values", "v"):
            heads[0] = heads[0].clone()
            heads[0][1, :, -image_tokens:] = heads[0][0, :, -image_tokens:]
        projections[name] = torch.cat(heads, dim=2)
    attention_map = (projections["q"] @ projections["k"].transpose(-1, -2) / projections["q"].shape[-1] ** 0.5).softmax(
        -1
    )
    result = (attention_map @ projections["v"]).transpose(1, 2).flatten(2)
    if len(streams) == 1:
        return [result]
    image = result[:, : streams[0].shape[1]]
    text = result[:, streams[0].shape[1] :]
    return [attn.to_out[0](image), attn.to_add_out(text)]


@pytest.mark.parametrize("name, edit_config", [("sd3", PromptToPrompt()), ("flux", PromptToPrompt())])
def test_prompt_to_prompt_is_rejected(pipes, name, edit_config):
    with pytest.raises(
        ValueError, match=r"edit_config=PromptToPrompt does not apply to the transformer of .*: pass Injection"
    ):
        edit(pipes[name], packed_seeds(name, "a cat"), "a dog", edit_config)


@pytest.mark.parametrize("name", PIPELINES)
def test_processors_are_restored_after_an_exception(pipes, name):
    network = pipes[name].transformer
    processors = network.attn_processors
    with pytest.raises(RuntimeError, match="inside"), attn_processor(network, object()):
        raise RuntimeError("inside")
    assert network.attn_processors == processors
