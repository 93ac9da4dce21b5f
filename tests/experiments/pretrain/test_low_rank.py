"""Low-rank updates are saved as a LoRA that diffusers applies."""

import pytest
import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file, save_file

from experiments.pretrain.distillation import text_states
from experiments.pretrain.lcm import save_lora
from experiments.pretrain.low_rank import LowRank


def as_if_trained(low_rank):
    """As if trained: none of its factors is zero."""
    torch.manual_seed(1)
    for up in low_rank.up:
        torch.nn.init.normal_(up, std=0.05)
    return low_rank


def test_saved_lora_equals_merged_weights_in_diffusers(pipeline, tmp_path):
    z, t, text = torch.randn(2, 4, 16, 16), torch.tensor([19, 999]), text_states(pipeline, ["a camel", "a drawing"])
    original = pipeline.unet(z, t, text).sample
    low_rank = LowRank(pipeline.unet, 4)
    torch.testing.assert_close(low_rank.run(low_rank.weights(), z, t, text), original)
    changed = as_if_trained(low_rank).run(low_rank.weights(), z, t, text)
    assert (changed - original).abs().mean() > 0.01
    save_lora(low_rank, pipeline, tmp_path)
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(pipeline.unet(z, t, text).sample, changed, atol=2e-3, rtol=2e-2)  # float16


def test_lora_of_another_rank_is_an_error(pipeline, tmp_path):
    first = as_if_trained(LowRank(pipeline.unet, 4))
    save_lora(first, pipeline, tmp_path)
    again = LowRank(pipeline.unet, 4)
    again.load(str(tmp_path))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match=r"task\.init_from='.*' does not contain a LoRA for this model with the rank"):
        LowRank(pipeline.unet, 3).load(str(tmp_path))
    path = tmp_path / LORA_WEIGHT_NAME_SAFE
    state = load_file(path)
    first_name = next(iter(state))
    for change in ({first_name: state[first_name][:1]}, {"unet.other.lora_A.weight": torch.ones(2, 2)}):
        save_file(state | change, path)
        with pytest.raises(ValueError, match=r"got a weight of shape|has no weight unet\.other\.lora_A\.weight"):
            again.load(str(tmp_path))
    with pytest.raises(ValueError, match=r"task\.init_from='nowhere' does not contain a LoRA"):
        again.load("nowhere")
