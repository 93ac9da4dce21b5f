"""Edits of transformers: what is injected is the source's, for as long as it is said, and nothing else changes."""

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

PIPES = {"sd3": tiny_sd3, "flux": tiny_flux}
CALLS = [("sd3", 1.0), ("sd3", 4.0), ("flux", 3.5)]


@pytest.fixture(scope="module")
def pipes():
    return {name: quiet(make()) for name, make in PIPES.items()}


def packed(name: str, *prompts: str, **options) -> Seeds:
    found = seeds(*prompts, **options)
    if name == "flux":
        found.latents = found.latents.reshape(len(prompts), 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 16, 16)
    return found


def latents(pipe, inversion, prompt, edit_config=None) -> tuple[Tensor, Tensor]:
    found = edit(pipe, inversion, prompt, edit_config, output_type="latent")
    return found.images, found.reconstructions


@pytest.mark.parametrize("name, guidance", CALLS)
@pytest.mark.parametrize("what", ["queries_keys", "values"])
def test_the_source_is_the_same_to_the_bit_and_the_edit_is_not(pipes, name, guidance, what):
    pipe, inversion = pipes[name], packed(name, "a cat x", guidance=guidance)
    found, again = latents(pipe, inversion, "a dog x", Injection(what=what, share=0.5))
    rows = inversion.latents.expand(2, *inversion.latents.shape[1:])
    swapped = pipe(**inversion.call | {"prompt": ["a cat x", "a dog x"], "latents": rows}, output_type="latent").images
    assert torch.equal(again, swapped[:1])
    assert (found - swapped[1:]).abs().max() > 1e-4


@pytest.mark.parametrize("name, guidance", CALLS)
@pytest.mark.parametrize("what", ["queries_keys", "values"])
def test_no_edit_is_the_reconstruction(pipes, name, guidance, what):
    pipe, inversion = pipes[name], packed(name, "a cat x", guidance=guidance)
    found, again = latents(pipe, inversion, "a cat x", Injection(what=what, share=1.0))
    torch.testing.assert_close(found, again)
    torch.testing.assert_close(again, pipe(**inversion.call, output_type="latent").images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, guidance", CALLS)
def test_a_share_of_nought_only_swaps_the_prompt(pipes, name, guidance):
    pipe, inversion = pipes[name], packed(name, "a cat x", guidance=guidance)
    found, _ = latents(pipe, inversion, "a dog x", Injection(share=0.0))
    swapped = pipe(**inversion.call | {"prompt": ["a dog x"]}, output_type="latent").images
    torch.testing.assert_close(found, swapped, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, guidance", CALLS)
def test_edits_of_a_batch_are_independent(pipes, name, guidance):
    pipe, inversion, edit_config = pipes[name], packed(name, "a cat", "b", guidance=guidance), Injection(share=0.5)
    found, _ = latents(pipe, inversion, [["a dog", "a cow"], "c"], edit_config)
    single = [Seeds((p,), inversion.latents[k : k + 1], guidance) for k, p in enumerate(inversion.prompts)]
    alone = [latents(pipe, single[k], text, edit_config)[0] for k, text in ((0, "a dog"), (0, "a cow"), (1, "c"))]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-4)


def layer_of(pipe, single: bool):
    transformer = pipe.transformer
    if single:
        return transformer.single_transformer_blocks[0].attn
    return transformer.transformer_blocks[0].attn


@pytest.mark.parametrize("name, single", [("sd3", False), ("flux", False), ("flux", True)])
@pytest.mark.parametrize("what", ["queries_keys", "values"])
def test_a_layer_equals_explicit_matrices(name, single, what):
    """The image's part of queries and keys, or of values, is the source's; the text's is the edit's own."""
    pipe = PIPES[name]().to(torch.float64)
    attn, width, texts, images = layer_of(pipe, single), 32, 5, 16
    random = torch.Generator().manual_seed(2)
    image, text = (torch.randn(2, n, width, generator=random, dtype=torch.float64) for n in (images, texts))
    state = EditState([0, 0], lambda: STEPS)
    kind = SD3InjectionProcessor if name == "sd3" else FluxInjectionProcessor
    processor = kind(state, Injection(what=what, share=0.5), images)
    streams = [torch.cat([text, image], dim=1)] if single else [image, text]
    found = processor(attn, *streams)
    expected = by_matrices(attn, streams, what, images)
    for one, other in zip([found] if single else found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    state.step = 2  # past the share
    plain = attn.get_processor()(attn, *streams)
    for one, other in zip(
        [processor(attn, *streams)] if single else processor(attn, *streams), [plain] if single else plain, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def by_matrices(attn, streams, what, images) -> list[Tensor]:
    added = {"q": "add_q_proj", "k": "add_k_proj", "v": "add_v_proj"}
    parts = {}
    for part in "qkv":
        layers = [getattr(attn, f"to_{part}"), *([getattr(attn, added[part])] if len(streams) > 1 else [])]
        heads = [
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, x in zip(layers, streams, strict=True)
        ]
        if part != "v":
            norms = [getattr(attn, f"norm_{part}"), getattr(attn, f"norm_added_{part}", None)]
            heads = [head if norm is None else norm(head) for norm, head in zip(norms, heads, strict=False)]
        if part in what.replace("queries_keys", "qk").replace("values", "v"):
            heads[0] = heads[0].clone()
            heads[0][1, :, -images:] = heads[0][0, :, -images:]
        parts[part] = torch.cat(heads, dim=2)
    matrix = (parts["q"] @ parts["k"].transpose(-1, -2) / parts["q"].shape[-1] ** 0.5).softmax(-1)
    result = (matrix @ parts["v"]).transpose(1, 2).flatten(2)
    if len(streams) == 1:
        return [result]
    image, text = result[:, : streams[0].shape[1]], result[:, streams[0].shape[1] :]
    return [attn.to_out[0](image), attn.to_add_out(text)]


@pytest.mark.parametrize("name, edit_config", [("sd3", PromptToPrompt()), ("flux", PromptToPrompt())])
def test_what_does_not_fit_the_network_is_said(pipes, name, edit_config):
    with pytest.raises(
        ValueError, match=r"edit_config=PromptToPrompt does not act on the transformer of .*: give Injection"
    ):
        edit(pipes[name], packed(name, "a cat"), "a dog", edit_config)


@pytest.mark.parametrize("name", PIPES)
def test_processors_are_restored_after_an_exception(pipes, name):
    network = pipes[name].transformer
    found = network.attn_processors
    with pytest.raises(RuntimeError, match="inside"), attn_processor(network, object()):
        raise RuntimeError("inside")
    assert network.attn_processors == found
