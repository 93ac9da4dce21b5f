"""SeedSelect on a generator that can be seen through: a linear map."""

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from experiments.data.emoji import read_table
from experiments.pretrain.denoiser import build_tokenizer
from seedselect import ClipFeatures, SeedSelect, Targets, appearance_loss, semantic_loss

SHAPE = (4, 4, 4)
MIX = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)) / 8


def generate(seeds: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
    z = (seeds.flatten(1) @ MIX).view(-1, *SHAPE)
    return [0.5 * seeds, z]


def decode(z: torch.Tensor) -> torch.Tensor:
    return z[:, :3].sigmoid()


def features(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(images.flatten(1) - 0.5, dim=-1)


def problem(batch: int) -> tuple[torch.Tensor, Targets]:
    generator = torch.Generator().manual_seed(2)
    seeds = torch.randn(batch, *SHAPE, generator=generator)
    unit = torch.nn.functional.normalize(torch.randn(batch, 48, generator=generator), dim=-1)
    return seeds, Targets(unit, torch.randn(batch, *SHAPE, generator=generator))


def run(select: SeedSelect, seeds: torch.Tensor, targets: Targets, trajectory=generate):
    return select(seeds, trajectory=trajectory, decode=decode, features=features, targets=targets)


def tool(**changes) -> SeedSelect:
    return SeedSelect(**{"iterations": 12, "step_weights": (0.3, 0.7), "drop_after": None} | changes)


def test_loss_falls_and_the_returned_seed_has_the_returned_loss():
    seeds, targets = problem(4)
    found = run(tool(), seeds, targets)
    assert (found.loss < found.initial_loss).all()
    again = tool().loss(generate(found.seed, torch.arange(4)), decode, features, targets)
    torch.testing.assert_close(again.double(), found.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.trace.nan_to_num(torch.inf).min(0).values, found.loss)


def test_never_worse_than_the_start():
    seeds, targets = problem(4)
    found = run(tool(learning_rate=1e3), seeds, targets)
    assert (found.loss <= found.initial_loss).all()


def test_update_is_torchs_adamw():
    seeds, targets = problem(3)
    z = seeds.clone().requires_grad_()
    optimiser = torch.optim.AdamW([z], lr=0.1, weight_decay=0.01)
    losses = []
    for _ in range(5):
        loss = tool().loss(generate(z, torch.arange(3)), decode, features, targets)
        losses.append(loss.detach())
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    found = run(tool(iterations=5), seeds, targets)
    torch.testing.assert_close(found.trace[:5], torch.stack(losses).double(), rtol=1e-5, atol=1e-5)


def test_rate_drops_to_a_tenth():
    assert [SeedSelect(learning_rate=1.0, drop_after=2)._rate(k) for k in range(4)] == [1.0, 1.0, 0.1, 0.1]


def test_a_sample_does_not_depend_on_its_neighbours():
    seeds, targets = problem(5)
    select = tool(patience=3, improvement=0.05)
    together = run(select, seeds, targets)
    for k in range(5):
        alone = run(select, seeds[k : k + 1], targets.select(torch.tensor([k])))
        torch.testing.assert_close(alone.seed[0], together.seed[k], rtol=0, atol=1e-5)
        assert alone.iterations[0] == together.iterations[k]


def test_settled_samples_leave_and_count_as_converged():
    seeds, targets = problem(4)
    sizes = []
    found = run(
        tool(iterations=60, patience=3, improvement=0.05), seeds, targets,
        lambda z, rows: sizes.append(len(rows)) or generate(z, rows),
    )  # fmt: skip
    assert found.converged.all() and (found.iterations < 60).all()
    assert sum(sizes) == (found.iterations + 1).sum()


def test_a_sample_that_breaks_spoils_no_other():
    seeds, targets = problem(3)

    def broken(z, rows):
        return [torch.where((rows == 1).view(-1, 1, 1, 1), torch.nan, latent) for latent in generate(z, rows)]

    found, whole = run(tool(), seeds, targets, broken), run(tool(), seeds, targets)
    for k in (0, 2):
        torch.testing.assert_close(found.seed[k], whole.seed[k])
    assert (found.seed[1] == seeds[1]).all()
    assert not torch.isfinite(found.loss[1]) and not found.converged[1]


def test_norm_can_be_kept():
    seeds, targets = problem(3)
    found = run(tool(norm="keep"), seeds, targets)
    torch.testing.assert_close(found.seed.flatten(1).norm(dim=1), seeds.flatten(1).norm(dim=1))
    assert (found.loss < found.initial_loss).all()


def test_losses_by_hand():
    target = torch.tensor([[2.0, 0.0]])
    latents = [torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])]
    assert semantic_loss(latents, target, (0.25, 0.75), lambda z: z, lambda x: x).tolist() == [0.25]
    assert appearance_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]])).tolist() == [5.0]


def test_bad_settings_are_explained():
    with pytest.raises(ValueError, match="iterations=0"):
        SeedSelect(iterations=0)
    with pytest.raises(ValueError, match="norm='typical'"):
        SeedSelect(norm="typical")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer(list(read_table("assets/emoji/captions.parquet")["caption"][:2000]))
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    text = tower | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    torch.manual_seed(0)
    vision = tower | {"image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_clip_features_are_the_processors(clip_folder):
    clip = ClipFeatures.from_pretrained(clip_folder, device="cpu", dtype=torch.float32, local_files_only=True)
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    processor = CLIPImageProcessor.from_pretrained(clip_folder)
    pixels = processor(images=list(images), return_tensors="pt").pixel_values
    expected = clip.model.get_image_features(pixel_values=pixels).pooler_output
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(clip(images.float() / 255), expected, rtol=0, atol=1e-5)
    assert clip.text(["a drawing of a camel"]).norm(dim=-1).item() == pytest.approx(1, abs=1e-5)


def test_clip_features_pass_the_gradient_through_a_resize(clip_folder):
    clip = ClipFeatures.from_pretrained(clip_folder, device="cpu", dtype=torch.float32, local_files_only=True)
    images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    clip(images)[:, 0].sum().backward()
    assert (images.grad[..., 8:56].abs().flatten(1).sum(1) > 0).all()
    assert (images.grad[..., :4] == 0).all()  # cut off by the centre crop


def test_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no CLIP model"):
        ClipFeatures.from_pretrained(tmp_path, device="cpu", dtype=torch.float32, local_files_only=True)
