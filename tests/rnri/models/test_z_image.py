"""Z-Image: sampling equals the pipeline, and a plain pipeline call regenerates inverted images."""

import string

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

import rnri
from rnri.editing import edit
from tests.rnri.test_api import assert_regenerates, state

PROMPTS = ["a cat", "two dogs on a hill"]
CHAT = "{% for message in messages %}user {{ message['content'] }} {% endfor %}assistant "


def tiny_tokenizer():
    """Return a tokenizer whose tokens are letters, with a chat template."""
    letters = ["<pad>", "<unk>", " ", *string.ascii_lowercase, *string.digits]
    tokenizer = Tokenizer(models.WordLevel({letter: k for k, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.chat_template = CHAT
    fast.model_max_length = 64
    return fast


def tiny_z_image(**scheduler_options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer()
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[512, 64, 64],
        )
        for weight in transformer.parameters():  # some weights are created without values
            torch.nn.init.normal_(weight, std=0.05)
        text = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.36,
            shift_factor=0.11,
        )
        return ZImagePipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | scheduler_options)),
            vae=vae.eval(),
            text_encoder=Qwen3Model(text).eval(),
            tokenizer=tokenizer,
        )


def images(height=16, width=16):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def pipeline_latents(pipe, seed, steps, guidance, size):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        list(PROMPTS),
        latents=seed,
        num_inference_steps=steps,
        guidance_scale=guidance - 1,
        negative_prompt=["fog", "rain on a hill"] if guidance > 1 else None,
        height=size[0],
        width=size[1],
        output_type="latent",
    ).images


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_equals_the_pipeline(steps, guidance, dynamic):
    pipe = tiny_z_image(use_dynamic_shifting=dynamic)
    size = (16, 24)
    model = rnri.LatentDiffusion(pipe, image_size=size)
    seed = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    predictor = model.predictor(PROMPTS, guidance, ["fog", "rain on a hill"])
    latents = model.sample(seed, predictor, model.schedule(steps))
    expected = pipeline_latents(pipe, seed, steps, guidance, size)
    torch.testing.assert_close(latents.float(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_pipeline_call_regenerates_the_image(guidance):
    pipe = tiny_z_image()
    inversion = rnri.invert(
        pipe,
        images(16, 24),
        list(PROMPTS),
        num_inference_steps=4,
        guidance_scale=guidance,
        method=rnri.anderson_inverter(8, 1e-9),
        fit="exact",
    )
    assert inversion.latents.dtype == torch.float32
    assert inversion.pipe_kwargs["guidance_scale"] == guidance - 1
    assert_regenerates(pipe, inversion)


def test_seed_does_not_depend_on_the_batch():
    pipe = tiny_z_image()
    arguments = {"num_inference_steps": 3, "fit": "exact", "round_trip": False}
    both = rnri.invert(pipe, images(), list(PROMPTS), **arguments)
    for k, prompt in enumerate(PROMPTS):
        one = rnri.invert(pipe, images()[k : k + 1], [prompt], **arguments)
        torch.testing.assert_close(one.seed, both.seed[k : k + 1], rtol=0, atol=1e-4)


def test_pipeline_is_unchanged():
    pipe = tiny_z_image()
    pipe.transformer.train()
    pipe.transformer.attn_processors = {}
    before = state(pipe)
    rnri.invert(pipe, images(), list(PROMPTS), num_inference_steps=2, fit="exact")
    after = state(pipe)
    assert torch.equal(before["scheduler"][2], after["scheduler"][2])
    assert {k: v for k, v in before.items() if k != "scheduler"} == {k: v for k, v in after.items() if k != "scheduler"}


def test_prompts_are_not_changed():
    prompts = list(PROMPTS)
    rnri.LatentDiffusion(tiny_z_image(), image_size=(16, 16)).predictor(prompts, 2.0, "fog")
    assert prompts == PROMPTS


def test_edits_are_refused_in_one_sentence():
    pipe = tiny_z_image()
    inversion = rnri.invert(pipe, images(), list(PROMPTS), num_inference_steps=2, fit="exact", round_trip=False)
    with pytest.raises(ValueError, match="ZImageFamily has no attention editor, so ZImagePipeline cannot edit"):
        edit(pipe, inversion, [["a dog"], ["a dog"]])


def test_text_encoder_of_another_width_is_refused():
    pipe = tiny_z_image()
    pipe.transformer.register_to_config(cap_feat_dim=32)
    with pytest.raises(ValueError, match="cap_feat_dim=32"):
        rnri.LatentDiffusion(pipe)


def test_default_image_size_is_that_of_the_pipeline():
    assert rnri.LatentDiffusion(tiny_z_image()).image_size == (1024, 1024)


def test_fingerprint_includes_the_tokenizer():
    one = rnri.LatentDiffusion(tiny_z_image())
    other = tiny_z_image()
    other.tokenizer.model_max_length = 32
    assert rnri.LatentDiffusion(other).fingerprint != one.fingerprint
