"""The distilled LoRA and the flow-matching model: what they learn from, what they save, and what they refuse."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file

import train
from experiments.pretrain.denoiser import build_scheduler, build_text_encoder, build_tokenizer
from experiments.pretrain.distillation import ReplayBuffer, text_states
from experiments.pretrain.flow_model import (
    WITHOUT_T5,
    MergedPaddingAttention,
    Velocity,
    build_transformer,
    clip_states,
    processor,
    sample_images,
)
from experiments.pretrain.flow_distillation import Teacher as FlowTeacher
from experiments.pretrain.flow_model import build_text_encoder as build_sd3_encoder
from experiments.pretrain.lcm import (
    Teacher,
    alpha_sigma,
    boundary_scalings,
    build_lcm_scheduler,
    save_lora,
    timesteps_drawn,
)
from experiments.pretrain.low_rank import LowRank
from tests.experiments.pretrain.configured import configured

CONCEPTS = 12
TINY = ["task.prompts=[a camel]", "task.max_images=6", "task.accuracy_probe.samples=1"]
TINY_FLOW = ["task.width=24", "task.heads=2", "task.layers=2", "task.hint_layer=up_blocks.0.resnets.0"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The first concepts' real drawings and some of their captions."""
    folder = tmp_path_factory.mktemp("corpus")
    for split in ("corpus", "reference", "fid"):
        name = f"drawings-{split}.parquet"
        pq.write_table(pq.read_table(f"assets/emoji/{name}", filters=[("concept_id", "<", CONCEPTS)]), folder / name)
    shown = pq.read_table(folder / "drawings-corpus.parquet")["image_id"].to_pylist()
    captions = pq.read_table("assets/emoji/captions.parquet", filters=[("image_id", "in", shown)])
    pq.write_table(captions.slice(0, 24), folder / "captions.parquet")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory, corpus):
    """A tiny Stable Diffusion pipeline of random weights, in a folder."""
    torch.manual_seed(0)
    captions = pq.read_table(corpus / "captions.parquet")["caption"].to_pylist()
    tokenizer = build_tokenizer([*captions, "a drawing of a camel"])
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4), layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=64,
        mid_block_add_attention=False,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(8, 16), layers_per_block=1,
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=build_text_encoder(tokenizer, 16, 2), tokenizer=tokenizer, unet=unet,
        scheduler=build_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline(base):
    return StableDiffusionPipeline.from_pretrained(base, safety_checker=None)


def prepared(what, corpus, base, folder, *overrides, steps=2):
    config = configured(what, folder, f"data.folder={corpus}", f"task.model={base}", *TINY, *overrides, steps=steps)
    return config, *train.prepare(config)


def pretrain(what, corpus, base, folder, *overrides, steps=2):
    config, task, trainer = prepared(what, corpus, base, folder, *overrides, steps=steps)
    train.save_config(config)
    task.run(trainer)
    return json.loads((folder / "run" / "results.json").read_text())


def trained(low_rank):
    """As if trained: none of its factors is zero."""
    torch.manual_seed(1)
    for up in low_rank.up:
        torch.nn.init.normal_(up, std=0.05)
    return low_rank


def test_a_new_difference_changes_nothing_and_a_saved_lora_is_what_diffusers_applies(pipeline, tmp_path):
    z, t, text = torch.randn(2, 4, 16, 16), torch.tensor([19, 999]), text_states(pipeline, ["a camel", "a drawing"])
    no_augmentation = pipeline.unet(z, t, text).sample
    low_rank = LowRank(pipeline.unet, 4)
    torch.testing.assert_close(low_rank.run(low_rank.weights(), z, t, text), no_augmentation)
    changed = trained(low_rank).run(low_rank.weights(), z, t, text)
    assert (changed - no_augmentation).abs().mean() > 0.01
    save_lora(low_rank, pipeline, tmp_path)
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(pipeline.unet(z, t, text).sample, changed, atol=2e-3, rtol=2e-2)  # half precision


def test_a_saved_lora_is_loaded_again_and_one_of_another_rank_is_refused(pipeline, tmp_path):
    load_pretrained = trained(LowRank(pipeline.unet, 4))
    save_lora(load_pretrained, pipeline, tmp_path)
    again = LowRank(pipeline.unet, 4)
    again.load(str(tmp_path))
    for a, b in zip(load_pretrained.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match=r"task\.init_from='.*' is no folder of a LoRA of this model and rank"):
        LowRank(pipeline.unet, 3).load(str(tmp_path))
    with pytest.raises(ValueError, match=r"task\.init_from='nowhere' is no folder of a LoRA"):
        again.load("nowhere")


def test_the_teacher_walks_as_ddim_does(pipeline):
    """diffusers' DDIM with 25 trailing steps goes down 40 timesteps at a time."""
    z, text = torch.randn(2, 4, 16, 16), text_states(pipeline, ["a camel", "a drawing"])

    def network(z, t, text):
        return pipeline.unet(z, t, text).sample

    alpha_bar = pipeline.scheduler.alphas_cumprod.double()
    teacher = Teacher(network, alpha_bar, text_states(pipeline, [""]), 40, 3, (2.5, 2.5))
    t = torch.tensor([959, 499])
    walked, s = teacher.walk(z, t, text)
    assert s.tolist() == [839, 379]
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(25)
    for row, start in enumerate(t.tolist()):
        x, told, empty = z[row : row + 1], text[row : row + 1], text_states(pipeline, [""])
        with torch.no_grad():
            for now in (start, start - 40, start - 80):
                without, with_text = (network(x, torch.tensor([now]), states) for states in (empty, told))
                x = scheduler.step(without + 2.5 * (with_text - without), now, x).prev_sample
        torch.testing.assert_close(walked[row : row + 1], x, atol=1e-4, rtol=1e-4)


def test_the_walk_ends_at_the_clean_latent_where_the_consistency_function_is_the_identity(pipeline):
    teacher = Teacher(
        lambda z, t, text: pipeline.unet(z, t, text).sample, pipeline.scheduler.alphas_cumprod.double(),
        text_states(pipeline, [""]), 40, 3, (1.0, 1.0),
    )  # fmt: skip
    z = torch.randn(1, 4, 16, 16)
    first, s = teacher.walk(z, torch.tensor([19]), text_states(pipeline, ["a camel"]))
    assert s.tolist() == [0] and not torch.equal(first, z)
    rest, _ = teacher.walk(first, s, text_states(pipeline, ["a camel"]))
    torch.testing.assert_close(rest, first)  # nowhere left to go
    skip, out = boundary_scalings(s)
    assert (skip.item(), out.item()) == (1.0, 0.0)


def test_few_step_timesteps_are_drawn_more_often(pipeline):
    grid, weights = timesteps_drawn(build_lcm_scheduler(pipeline))
    share = dict(zip(grid.tolist(), weights.tolist(), strict=True))
    assert len(share) == 50 and sum(share.values()) == pytest.approx(1)
    assert share[999] == pytest.approx(0.5 / 50 + 0.5 * 4 / 15)  # every one of 1, 2, 4 and 8 steps begins there
    assert share[499] == pytest.approx(0.5 / 50 + 0.5 * 3 / 15)
    assert share[19] == pytest.approx(0.5 / 50)


def test_the_lcm_scheduler_has_the_noise_levels_of_the_base(pipeline):
    ours = build_lcm_scheduler(pipeline)
    torch.testing.assert_close(ours.alphas_cumprod, pipeline.scheduler.alphas_cumprod)


def test_kept_rows_stay_together_and_the_oldest_go():
    kept = ReplayBuffer(4)
    for k in range(3):
        kept.add(torch.full((2, 1), k), torch.full((2,), 10 * k))
    first, second = kept.draw(4)
    assert sorted(second.tolist()) == [10, 10, 20, 20]
    assert torch.equal(first.flatten() * 10, second)


@pytest.mark.slow
def test_distillation_saves_a_lora_for_plain_diffusers_and_goes_on(corpus, base, tmp_path):
    result = pretrain("lcm", corpus, base, tmp_path, "task.rank=2")
    assert result["steps"] == 2
    assert [(row["method"], row["steps"]) for row in result["rows"]] == [
        (method, steps) for method in ("lcm", "ddim") for steps in (1, 2, 4)
    ]
    assert sum(result["rows"][0][bucket]["n"] for bucket in ("head", "medium", "tail")) == CONCEPTS
    model = tmp_path / "run" / "model"
    assert any(tensor.any() for name, tensor in load_file(model / "pytorch_lora_weights.safetensors").items()
               if "lora_B" in name)  # fmt: skip
    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipe.load_lora_weights(model)
    pipe.scheduler = LCMScheduler.from_pretrained(model)
    images = pipe("a camel", num_inference_steps=2, guidance_scale=1.0, output_type="pt").images
    assert images.shape == (1, 3, 64, 64)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    pretrain("lcm", corpus, base, tmp_path, "task.rank=2", "task.accuracy_probe=null", steps=3)
    state = torch.load(checkpoint, weights_only=False)
    assert state["global_step"] == 3 and not any("unet" in name for name in state["state_dict"])


def test_distillation_without_a_rate_leaves_a_saved_lora_as_it_is(corpus, base, pipeline, tmp_path):
    start = tmp_path / "start"
    save_lora(trained(LowRank(pipeline.unet, 2)), pipeline, start)
    options = ("task.rank=2", f"task.init_from={start}", "task.lr=0", "task.accuracy_probe=null")
    pretrain("lcm", corpus, base, tmp_path, *options, steps=1)
    before, after = (load_file(f / "pytorch_lora_weights.safetensors") for f in (start, tmp_path / "run" / "model"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_wrong_settings_are_named_before_a_distillation(corpus, base, tmp_path):
    with pytest.raises(ValueError, match=r"task\.guidance=\[3\.0, 2\.0\] is no range: give the lower end first"):
        prepared("lcm", corpus, base, tmp_path, "task.guidance=[3.0,2.0]")
    with pytest.raises(ValueError, match=r"task\.model='nowhere' is no folder of StableDiffusionPipeline"):
        prepared("lcm", corpus, "nowhere", tmp_path)


def test_text_states_of_sd3_are_those_the_unet_is_told_before_the_last_norm(pipeline):
    tokens = pipeline.tokenizer(["a drawing of a camel"], padding="max_length", return_tensors="pt").input_ids
    start = pipeline.text_encoder.eval()
    longer, same = (build_sd3_encoder(start, layers) for layers in (3, 2))
    with torch.no_grad():
        told = start(tokens, output_hidden_states=True)
        first, second = (encoder(tokens, output_hidden_states=True) for encoder in (longer, same))
    torch.testing.assert_close(start.final_layer_norm(first.hidden_states[-2]), told.last_hidden_state)
    torch.testing.assert_close(second.hidden_states[-2], told.hidden_states[-2])
    for encoder in (first, second):
        torch.testing.assert_close(encoder.text_embeds, told.pooler_output)


@pytest.mark.parametrize("zeros", [0, 1, 256])
def test_one_token_stands_for_many_zeros(pipeline, zeros):
    torch.manual_seed(0)
    transformer = build_transformer(pipeline.vae, 32, 32, 24, 3, 2)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, states, pooled = torch.randn(2, 4, 16, 16), torch.randn(2, 24, 32), torch.randn(2, 32)
    sigma, captions = torch.tensor([0.3, 1.0]), torch.tensor([1, 0])
    with torch.no_grad():
        text = torch.cat([states[captions], torch.zeros(2, zeros, 32)], 1)
        whole = transformer(x, text, pooled[captions], sigma * 1000).sample
        with processor(transformer, MergedPaddingAttention()):
            short = Velocity(transformer, states, pooled)(x, sigma, captions, torch.full((2,), zeros))
    assert whole.std() > 0.1
    torch.testing.assert_close(short, whole, atol=1e-4, rtol=1e-4)


class KnowsTheAnswer(torch.nn.Module):
    """The noise predictor of data that are standard normal, E[n | z] = sqrt(1 - abar) z."""

    def __init__(self, alpha_bar):
        super().__init__()
        self.alpha_bar, self.layer = alpha_bar, torch.nn.Identity()

    def forward(self, z, t, _):
        self.layer(z)
        return type("Output", (), {"sample": (1 - self.alpha_bar[t]).sqrt().view(-1, 1, 1, 1) * z})


def test_velocities_of_a_noise_predictor_are_those_of_the_data():
    """On standard normal data E[n - x0 | x] = (2 sigma - 1) / ((1 - sigma)^2 + sigma^2) x, in closed form."""
    scheduler = build_scheduler()
    known = type("Pipeline", (), {"unet": KnowsTheAnswer(scheduler.alphas_cumprod), "scheduler": scheduler})
    teacher = FlowTeacher(known, torch.zeros(1, 1, 1), "layer")
    torch.manual_seed(0)
    z0, wanted = torch.randn(4, 4, 64, 64), torch.tensor([0.03, 0.4, 0.7, 0.9])
    x, sigma, velocity, features = teacher(z0, wanted, torch.zeros(4, dtype=torch.long))
    assert (wanted - sigma).abs().max() < 0.01 and features.shape == (4, 64 * 64, 4)
    factor = ((2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2)).view(-1, 1, 1, 1)
    torch.testing.assert_close(velocity, factor * x, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(x.var((1, 2, 3)), (1 - sigma) ** 2 + sigma**2, atol=0.03, rtol=0.03)


def test_beyond_the_teachers_last_timestep_the_mean_and_the_spread_are_right():
    scheduler = build_scheduler()
    known = type("Pipeline", (), {"unet": KnowsTheAnswer(scheduler.alphas_cumprod), "scheduler": scheduler})
    teacher = FlowTeacher(known, torch.zeros(1, 1, 1), "layer")
    torch.manual_seed(0)
    wanted = torch.tensor([0.97])
    x, sigma, velocity, _ = teacher(torch.randn(1, 4, 256, 256), wanted, torch.zeros(1, dtype=torch.long))
    assert sigma.item() == pytest.approx(0.97)
    assert x.var().item() == pytest.approx(0.03**2 + 0.97**2, rel=0.02)
    slope = ((velocity * x).mean() / (x * x).mean()).item()  # of the regression that the student makes
    assert slope == pytest.approx(0.94 / (0.03**2 + 0.97**2), rel=0.02)


@pytest.mark.slow
def test_flow_is_a_complete_sd3_pipeline_and_samples_as_its_training_does(corpus, base, tmp_path):
    result = pretrain("flow", corpus, base, tmp_path, f"task.teacher={base}", *TINY_FLOW)
    assert result["steps"] == 2
    assert [row["guidance"] for row in result["rows"]] == [6.0]
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "run" / "model")
    assert type(pipe).__name__ == "StableDiffusion3Pipeline"
    without = DiffusionPipeline.from_pretrained(tmp_path / "run" / "model", **WITHOUT_T5)
    said, unsaid = (p.encode_prompt(["a camel"], None, None) for p in (pipe, without))
    assert all(torch.equal(a, b) for a, b in zip(said, unsaid, strict=True))  # the third encoder's states are zeros
    for part in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer"):
        assert getattr(pipe, part).dtype == torch.float32
    pipe.set_progress_bar_config(disable=True)
    torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=0.1)
    without.register_modules(transformer=pipe.transformer)
    seeds = torch.randn(2, 4, 16, 16)
    prompts = ["a camel", "a drawing of a camel"]
    images = pipe(prompts, num_inference_steps=3, guidance_scale=2.0, latents=seeds, output_type="pt").images
    with processor(pipe.transformer, MergedPaddingAttention()):
        ours = sample_images(without, prompts, seeds, 3, 2.0)
    torch.testing.assert_close(ours, images, atol=2e-3, rtol=0)


def test_flow_learns_from_the_data_alone_and_from_a_start(corpus, base, tmp_path):
    options = ("task.teacher=null", "task.accuracy_probe=null", *TINY_FLOW)
    pretrain("flow", corpus, base, tmp_path / "first", *options)
    start = tmp_path / "first" / "run" / "model"
    pretrain("flow", corpus, base, tmp_path / "second", *options, f"task.init_from={start}", "task.lr=0", steps=1)
    first, second = (
        DiffusionPipeline.from_pretrained(p, **WITHOUT_T5) for p in (start, tmp_path / "second" / "run" / "model")
    )
    for a, b in zip(first.transformer.parameters(), second.transformer.parameters(), strict=True):
        assert torch.equal(a, b)
    assert clip_states(first, ["a camel"])[0].shape == (1, 24, 32)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.width=25", r"task\.width=25 is no multiple of task\.heads=2"),
        ("task.hint_layer=nothing", r"task\.hint_layer='nothing' is no layer of the teacher's UNet"),
        ("task.hint_layer=conv_in", r"task\.hint_layer='conv_in' has a map of 256 places, the transformer 64 tokens"),
        ("task.teacher=nowhere", r"task\.teacher='nowhere' is no folder of StableDiffusionPipeline"),
    ],
)
def test_wrong_settings_are_named_before_a_flow_training(corpus, base, tmp_path, override, said):
    with pytest.raises(ValueError, match=said):
        prepared("flow", corpus, base, tmp_path, f"task.teacher={base}", *TINY_FLOW, override)


def test_levels_are_signal_and_noise():
    alpha, sigma = alpha_sigma(torch.tensor([1.0, 0.36], dtype=torch.float64), torch.tensor([0, 1]))
    torch.testing.assert_close(alpha.flatten(), torch.tensor([1.0, 0.6]))
    torch.testing.assert_close(sigma.flatten(), torch.tensor([0.0, 0.8]))


def test_embedded_few_step_and_flow_models_are_small_enough():
    sizes = {
        name: sum(f.stat().st_size for f in Path(f"assets/models/{name}").rglob("*") if f.is_file())
        for name in ("emoji_lcm", "emoji_flow")
    }
    assert 0 < sizes["emoji_lcm"] <= 5e6 and 0 < sizes["emoji_flow"] <= 25e6
