"""Networks whose output depends on earlier calls are rejected by every entry point."""

import types

import diffusers.hooks
import pytest
import torch
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
    TextKVCacheConfig,
)

import rnri
from rnri import LatentDiffusion
from rnri.models.checks.caches import check_no_cache
from tests.pipelines import tiny_flux, tiny_sd3, tiny_stable_diffusion
from tests.rnri.models.checkpoints import assert_rejected

BROADCAST = {
    "spatial_attention_block_skip_range": 2,
    "spatial_attention_timestep_skip_range": (0, 1000),
    "current_timestep_callback": lambda: 500,
}
CACHES = [
    MagCacheConfig(num_inference_steps=6, mag_ratios=torch.ones(6)),
    FirstBlockCacheConfig(threshold=0.1),
    PyramidAttentionBroadcastConfig(**BROADCAST),
    FasterCacheConfig(**BROADCAST, is_guidance_distilled=True),
    TaylorSeerCacheConfig(),
    SeaCacheConfig(),
    TextKVCacheConfig(),
]


@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: type(cache).__name__)
def test_caches_of_diffusers(cache):
    pipe = tiny_flux()
    model = LatentDiffusion(pipe)
    pipe.transformer.enable_cache(cache)
    expected = ("transformer has a cache", type(cache).__name__, "pipe.transformer.disable_cache()")
    images = torch.full((1, 3, 16, 16), 0.5)
    assert_rejected(lambda: rnri.invert(pipe, images, ["a cat"], num_inference_steps=2), *expected)
    assert_rejected(lambda: LatentDiffusion(pipe), *expected)
    assert_rejected(lambda: model.predictor(["a cat"]), *expected)
    pipe.transformer.disable_cache()
    assert model.predictor(["a cat"]) is not None


@pytest.mark.parametrize(("pipeline", "name"), [(tiny_stable_diffusion, "unet"), (tiny_sd3, "transformer")])
def test_hooks_on_networks_without_enable_cache(pipeline, name):
    pipe = pipeline()
    network = getattr(pipe, name)
    diffusers.hooks.apply_pyramid_attention_broadcast(network, PyramidAttentionBroadcastConfig(**BROADCAST))
    assert_rejected(lambda: LatentDiffusion(pipe), f"{name} has a cache (pyramid_attention_broadcast)", "remove_hook")
    registry = diffusers.hooks.HookRegistry.check_if_exists_or_initialize(network)
    registry.remove_hook("pyramid_attention_broadcast", recurse=True)  # as the message says
    assert LatentDiffusion(pipe).predictor(["a cat"]) is not None


def test_caches_of_other_packages(monkeypatch):
    pipe = tiny_stable_diffusion()

    def wrapped(*args, **options):
        return None

    wrapped.__module__ = "DeepCache.sd.extension"
    pipe.unet.mid_block.forward = wrapped
    assert_rejected(lambda: LatentDiffusion(pipe), "unet has a cache (DeepCache.sd.extension", "disable this cache")
    del pipe.unet.mid_block.forward
    pipe.unet._is_cached = True
    assert_rejected(lambda: LatentDiffusion(pipe), "unet has a cache (_is_cached)")
    del pipe.unet._is_cached
    monkeypatch.setattr(type(pipe.unet), "enable_teacache", True, raising=False)
    assert_rejected(lambda: LatentDiffusion(pipe), "unet has a cache (enable_teacache)")


def test_hooks_and_wrappers_without_a_cache_are_accepted():
    pipe = tiny_flux()
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    pipe.transformer.forward = types.MethodType(type(pipe.transformer).forward, pipe.transformer)
    check_no_cache("transformer", pipe.transformer)


def test_ip_adapter_of_a_transformer():
    """Its processor would ignore the image prompt without a word."""
    pipe = tiny_flux()

    class FluxIPAdapterAttnProcessor:
        def __call__(self, *args, **options):
            return None

    pipe.transformer.transformer_blocks[0].attn.processor = FluxIPAdapterAttnProcessor()
    assert_rejected(lambda: LatentDiffusion(pipe), "transformer has an IP-Adapter", "pipe.unload_ip_adapter()")
