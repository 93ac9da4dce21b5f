"""The flow-matching model in the repository: hidden states of the text, merged zero tokens and size."""

from pathlib import Path

import pytest
import torch

from experiments.pretrain.flow_model import (
    MergedPaddingAttention,
    Velocity,
    attention_processor,
    build_text_encoder,
    build_transformer,
)


def test_sd3_text_states_equal_those_of_the_unet(pipeline):
    tokens = pipeline.tokenizer(["a drawing of a camel"], padding="max_length", return_tensors="pt").input_ids
    start = pipeline.text_encoder.eval()
    longer, same = (build_text_encoder(start, layers) for layers in (3, 2))
    with torch.no_grad():
        expected = start(tokens, output_hidden_states=True)
        first, second = (encoder(tokens, output_hidden_states=True) for encoder in (longer, same))
    torch.testing.assert_close(start.final_layer_norm(first.hidden_states[-2]), expected.last_hidden_state)
    torch.testing.assert_close(second.hidden_states[-2], expected.hidden_states[-2])
    for encoder in (first, second):
        torch.testing.assert_close(encoder.text_embeds, expected.pooler_output)


@pytest.mark.parametrize("zeros", [0, 1, 256])
def test_merged_padding_equals_zero_tokens(pipeline, zeros):
    torch.manual_seed(0)
    transformer = build_transformer(pipeline.vae, text_width=32, pooled_width=32, width=24, layers=3, heads=2)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, states, pooled = torch.randn(2, 4, 16, 16), torch.randn(2, 24, 32), torch.randn(2, 32)
    sigma, captions = torch.tensor([0.3, 1.0]), torch.tensor([1, 0])
    with torch.no_grad():
        text = torch.cat([states[captions], torch.zeros(2, zeros, 32)], 1)
        full = transformer(x, text, pooled[captions], sigma * 1000).sample
        with attention_processor(transformer, MergedPaddingAttention()):
            merged = Velocity(transformer, states, pooled)(x, sigma, captions, torch.full((2,), zeros))
    assert full.std() > 0.1
    torch.testing.assert_close(merged, full, atol=1e-4, rtol=1e-4)


def test_embedded_models_are_small():
    sizes = {
        name: sum(f.stat().st_size for f in Path(f"assets/models/{name}").rglob("*") if f.is_file())
        for name in ("emoji_lcm", "emoji_flow")
    }
    assert 0 < sizes["emoji_lcm"] <= 5e6 and 0 < sizes["emoji_flow"] <= 25e6
