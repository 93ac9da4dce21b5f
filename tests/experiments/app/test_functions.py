"""The computations of the web page, without Gradio."""

import io
import re
import socket
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from experiments.app import edit_tab
from experiments.app.__main__ import build_context, check_port, check_run, compose_config, parse_settings
from experiments.app.context import default_steps, resolve_device
from experiments.app.edits import edit_config, edit_controls, edit_image, invert_image, parse_weights
from experiments.app.rare import iterate_seedselect
from experiments.app.ratings import Ratings, build_questions, methods_of, read_run, validate_rater
from experiments.app.seed_files import read_seed, write_seed
from experiments.app.seeds import NUM_POINTS, add_prompt_lines, broadcast_prompts, explore, invert_images, norm_figure
from experiments.app.uploads import UploadLimits, enlarge, read_examples, read_image, to_pil
from experiments.app.widgets import image_list_input
from rnri import LatentDiffusion
from rnri.editing import Injection, PromptToPrompt
from tests.experiments.app.runs import finished_run

LIMITS = UploadLimits(max_bytes=1_000_000, max_pixels=10_000)
CAMEL = "a drawing of a camel on a white background"


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def context():
    return build_context(compose_config(["steps=2", "method=accelerated", "method=accelerated", "select.iterations=2"]))


@pytest.fixture(scope="module")
def inverted(context):
    example = context.examples[0]
    calls = []
    result = invert_image(
        context, example.image, example.prompt, on_step=lambda done, steps: calls.append((done, steps))
    )
    assert calls == [(1, 2), (2, 2)]
    return result


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"this is not an image", "is not a readable image"),
        (png(Image.new("RGB", (200, 100))), "20,?000|200 x 100 pixels"),
        (b"x" * 1_000_001, "at most 1 MB"),
        (png(Image.effect_noise((90, 90), 50))[:3000], "cannot be decoded"),
    ],
)
def test_invalid_uploads_raise_an_error_with_the_file_name(data, message, tmp_path):
    (tmp_path / "cat.png").write_bytes(data)
    for source in (tmp_path / "cat.png", data):
        with pytest.raises(ValueError, match=message) as caught:
            read_image(source, (16, 16), LIMITS, name="cat.png")
        assert "cat.png" in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_images_are_fitted_upright_on_a_white_background():
    clear = read_image(png(Image.new("RGBA", (30, 60), (255, 0, 0, 0))), (16, 8), LIMITS)
    assert np.asarray(clear).min() == 255 and clear.size == (8, 16)
    rotated = Image.new("RGB", (40, 20), "blue")
    rotated.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    data = io.BytesIO()
    rotated.save(data, "PNG", exif=exif)
    upright = read_image(data.getvalue(), (40, 20), LIMITS)
    assert upright.size == (20, 40) and upright.getpixel((19, 0)) == (255, 255, 255)
    assert enlarge(Image.new("RGB", (64, 64))).size == (384, 384) and enlarge(upright).size == (400, 800)


def test_examples_are_read_from_a_folder_with_prompts(tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red\n square\n")
    result = read_examples(tmp_path, (16, 16), LIMITS)
    assert [(example.prompt, example.image.size) for example in result] == [("a red square", (16, 16))]
    assert read_examples(None, (16, 16), LIMITS) == []
    (tmp_path / "none").mkdir()
    for folder in (tmp_path / "none", tmp_path / "absent"):
        with pytest.raises(ValueError, match="examples: "):
            read_examples(folder, (16, 16), LIMITS)


def test_edit_with_the_same_prompt_is_the_reconstruction(context, inverted):
    config = edit_config(context.model.family, cross=0.4, self_attention=0.4, weights="", blend="", share=0.2)
    before, after = edit_image(context, inverted.seed, inverted.seed.prompt, config)
    assert np.array_equal(before, after) and before.size == context.model.image_size[::-1]
    again, other = edit_image(context, inverted.seed, "a drawing of a red dog on a pink background", config)
    assert np.abs(np.asarray(again, int) - np.asarray(before, int)).max() <= 1 and not np.array_equal(again, other)
    assert re.match(r"\d+\.\d of \d+\.\d dB", inverted.summary)


def test_edit_settings_are_parsed(context):
    family = context.model.family
    settings = {"cross": 0.3, "self_attention": 0.6, "weights": "old dog=2, red=0.5", "blend": "dog, cat", "share": 0.9}
    assert edit_config(family, **settings) == PromptToPrompt(
        0.3, 0.6, weights={"old dog": 2.0, "red": 0.5}, blend=("dog", "cat")
    )
    assert edit_controls(family) == ("cross", "self_attention", "weights", "blend")
    assert edit_config(object(), **settings) == Injection(share=0.9) and edit_controls(object()) == ("share",)
    for text in ("dog", "dog=", "dog=two", "=2", "dog=inf"):
        with pytest.raises(ValueError, match="word weights"):
            parse_weights(text)


def test_images_that_are_not_finite_are_not_displayed():
    images = torch.rand(2, 3, 4, 4)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^1 of 2 images are not finite: start the page with model.dtype=float32\.$"):
        to_pil(images)


@pytest.mark.parametrize("flags, name", [([True, False], "reconstruction"), ([False, True], "edited image")])
def test_images_of_the_safety_checker_are_not_displayed(context, inverted, monkeypatch, flags, name):
    monkeypatch.setattr(
        type(context.model.pipeline), "run_safety_checker", lambda self, images, device, dtype: (images, flags)
    )
    with pytest.raises(ValueError, match=f"the model's safety checker replaced the {name} by a black image"):
        edit_image(context, inverted.seed, "a drawing of a dog", PromptToPrompt())


@pytest.mark.parametrize("prompt", ["", "  "])
def test_empty_prompts_raise_an_error(context, inverted, prompt):
    with pytest.raises(ValueError, match="prompt is empty"):
        invert_image(context, context.examples[0].image, prompt)
    with pytest.raises(ValueError, match="prompt is empty"):
        edit_image(context, inverted.seed, prompt, PromptToPrompt())
    with pytest.raises(ValueError, match="prompt is empty"):
        next(iterate_seedselect(context, prompt, [context.examples[0].image]))


def test_seed_file_round_trip(context, inverted, tmp_path):
    path = write_seed(inverted.seed, tmp_path)
    result = read_seed(path, context)
    assert torch.equal(result.latents, inverted.seed.latents)
    assert replace(result, latents=None) == replace(inverted.seed, latents=None)
    assert (
        result.summary == inverted.seed.summary and result.digest[:16] in path.name and "4 x 16 x 16" in result.summary
    )


def test_invalid_seed_files_raise_an_error(context, inverted, tmp_path):
    seed = inverted.seed
    invalid = {
        "another model": replace(seed, fingerprint="0" * 64),
        "the model needs": replace(seed, latents=seed.latents[..., :8]),
        "not finite": replace(seed, latents=torch.full_like(seed.latents, torch.nan)),
        "guidance": replace(seed, guidance=0.5),
    }
    for message, invalid_seed in invalid.items():
        with pytest.raises(ValueError, match=message):
            read_seed(write_seed(invalid_seed, tmp_path), context)
    (tmp_path / "text.safetensors").write_text("not a seed")
    with pytest.raises(ValueError, match=r"text\.safetensors is not a seed file"):
        read_seed(tmp_path / "text.safetensors", context)


def test_images_of_the_path_and_the_averages_are_generated(context):
    images = [example.image for example in context.examples[:2]]
    seeds = invert_images(context, images, broadcast_prompts(CAMEL, 2))
    result = explore(context, seeds, CAMEL)
    assert len(result.images) == NUM_POINTS and {len(norms) for norms in result.norms.values()} == {NUM_POINTS}
    ends = seeds.double().flatten(1).norm(dim=1).tolist()
    for norms in result.norms.values():
        assert [norms[0], norms[-1]] == pytest.approx(ends, rel=1e-5)
    assert result.averages[0][0] == "NAO centroid" and len(result.averages) == 4
    assert norm_figure(result, 3).axes[0].lines[-1].get_xdata()[0] == 4


def test_prompts_are_one_per_image_or_one_for_all():
    assert broadcast_prompts(" a \n b \n\n", 2) == ["a", "b"] and broadcast_prompts("a", 3) == ["a"] * 3
    for text, count, message in (
        ("a\nb", 3, "2 prompts for 3 images: write one line per image"),
        ("a\nb\nc", 2, "3 prompts for 2 images: "),
        ("\na", 2, r"1 prompt for 2 images \(line 1 is empty\): "),
        ("a\n", 2, r"1 prompt for 2 images \(line 2 is empty\): "),
        ("a\n\nb", 2, r"2 prompts for 2 images \(line 2 is empty\): "),
    ):
        with pytest.raises(ValueError, match=message):
            broadcast_prompts(text, count)


def test_prompt_stays_in_the_line_of_its_image():
    text = add_prompt_lines("", 0, [""])  # an image is uploaded
    text = add_prompt_lines(text, 1, ["a fox"])  # an example is chosen
    assert text == "\na fox"
    with pytest.raises(ValueError, match="line 1 is empty"):
        broadcast_prompts(text, 2)
    assert add_prompt_lines(text, 2, ["", ""]) == "\na fox\n\n"
    assert add_prompt_lines("a fox", 1, [""]) == "a fox\n"  # the uploaded image does not get the prompt of the example
    assert add_prompt_lines("my dog", 0, [""]) == "my dog"  # written before the image is uploaded
    assert add_prompt_lines("my dog\nmy cat", 1, ["a fox"]) == "my dog\na fox\nmy cat"


def test_components_keep_each_prompt_with_its_image(context, tmp_path):
    path = tmp_path / "mine.png"
    Image.new("RGB", (20, 20), "red").save(path)
    fox = context.examples[5]
    selected = gr.SelectData(None, {"index": 5, "value": None})

    def handlers(prompt_per_image):
        with gr.Blocks() as page:
            image_list_input(context, "x", 4, prompt_per_image=prompt_per_image)
        return [function.fn for function in page.fns.values()]

    upload, choose, *_ = handlers(prompt_per_image=True)
    images, _, text = upload([], [str(path)], "")
    images, _, text = choose(images, text, selected)
    assert len(images) == 2 and text == f"\n{fox.prompt}"
    upload, choose, *_ = handlers(prompt_per_image=False)
    images, _, text = upload([], [str(path)], "")
    assert choose(images, text, selected)[2] == ""  # the uploaded image does not get the prompt of the example
    images, _, text = choose([], "", selected)
    assert upload(images, [str(path)], text)[2] == text == fox.prompt
    assert choose([], "mine", selected)[2] == "mine"


def test_uploaded_image_does_not_get_the_prompt_of_an_example(context, inverted, tmp_path):
    path = tmp_path / "mine.png"
    Image.new("RGB", (20, 20), "red").save(path)
    assert edit_tab._upload(context, path, context.examples[5].prompt)[2] == ""
    assert edit_tab._upload(context, path, "my dog")[2] == "my dog"
    *_, prompt, image, shown = edit_tab._load_seed(context, tmp_path, write_seed(inverted.seed, tmp_path))
    assert prompt == inverted.seed.prompt and image is None and shown is None


def test_number_of_images_is_limited(context):
    one = [context.examples[0].image]
    with pytest.raises(ValueError, match="2 to 8"):
        invert_images(context, one, [CAMEL])
    for references in ([], one * 6):
        with pytest.raises(ValueError, match="1 to 5"):
            next(iterate_seedselect(context, CAMEL, references))
    with pytest.raises(ValueError, match="must be one line"):
        next(iterate_seedselect(context, f"{CAMEL}\na fox", one))


def test_seedselect_yields_iterations_and_can_be_stopped(context):
    iterations = iterate_seedselect(context, CAMEL, [example.image for example in context.examples[:2]])
    progress = list(iterations)
    assert [step.iteration for step in progress] == [0, 1, 2] and {step.iterations for step in progress} == {2}
    best = [step.best_loss for step in progress]
    assert best == sorted(best, reverse=True)
    assert best == [min(step.loss for step in progress[: k + 1]) for k in range(3)]
    stopped = iterate_seedselect(context, CAMEL, [context.examples[0].image])
    first = next(stopped)
    stopped.close()
    assert first.seed.prompt == CAMEL and not context.lock.locked()


def test_invalid_settings_raise_an_error_that_names_the_key():
    with pytest.raises(ValueError, match="method: EDICT stores more than the seed"):
        build_context(compose_config(["method=edict"]))
    for override in ("steps=0", "port=99999", "methods=[one]", "max_upload_pixels=many"):
        with pytest.raises(ValueError, match=f"^{override.partition('=')[0]}: "):
            parse_settings(compose_config([override]))
    with pytest.raises(ValueError, match=r"^prot: no such key in configs/app\.yaml; did you mean port\?"):
        compose_config(["prot=7861"])
    assert default_steps(1) < default_steps(7.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "device=quantum",
            r"^device: must be auto or a device that PyTorch finds here, such as cpu or cuda:0, got 'quantum'\.$",
        ),
        ("device=cuda:99", r"^device: .*got 'cuda:99'"),
        ("device=meta", r"^device: .*got 'meta'"),
        ("clip=/nowhere", "^clip: /nowhere has no CLIP model"),
        ("examples=/nowhere", "^examples: /nowhere must be a folder"),
        ("method=edict", "^method: EDICT stores more than the seed"),
    ],
)
def test_errors_are_raised_before_the_model_is_loaded(override, message, monkeypatch):
    monkeypatch.setattr(LatentDiffusion, "from_pretrained", lambda *_, **__: pytest.fail("the model is loaded"))
    config = compose_config([override])
    with pytest.raises(ValueError, match=message) as caught:
        build_context(config)
    assert "\n" not in str(caught.value)


def test_device_auto_is_a_device_of_this_machine():
    assert resolve_device(resolve_device("auto")) in ("cpu", "cuda") and resolve_device("cpu") == "cpu"


def test_port_in_use_is_rejected():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=rf"^port: cannot listen on 127\.0\.0\.1:{port} .*port={port + 1}"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
    with pytest.raises(ValueError, match=r"^port: cannot listen on host\.invalid"):
        check_port("host.invalid", 7860)


def test_run_is_read_without_lost_samples(tmp_path):
    run = finished_run(tmp_path, lost={("plain", "camel", 0)})
    items = read_run(run)
    assert methods_of(items) == ["plain", "seedselect"] and len(items) == 3
    assert {item.prompt for item in items} == {"a drawing of a camel", "a drawing of a owl"}
    for item in items:
        assert item.images["plain"].read().getpixel((0, 0)) == (40, 40, 40)
        assert item.images["seedselect"].read().getpixel((0, 0)) == (200, 200, 200)


def test_folders_without_a_finished_run_raise_an_error(tmp_path):
    for check in (read_run, check_run):
        with pytest.raises(ValueError, match=r"results\.json is missing"):
            check(tmp_path)
    with pytest.raises(ValueError, match="two methods"):
        read_run(finished_run(tmp_path, methods={"plain": 1}))


def test_order_and_sides_are_random_per_rater(tmp_path):
    items = read_run(finished_run(tmp_path)) * 8
    questions = build_questions(items, ["plain", "seedselect"], "ada")
    assert questions == build_questions(items, ["seedselect", "plain"], "ada")
    assert questions != build_questions(items, ["plain", "seedselect"], "bob")
    assert {question.order for question in questions} == {("plain", "seedselect"), ("seedselect", "plain")}
    for methods in (["plain"], ["a", "b", "c", "d"], ["plain", "absent"]):
        with pytest.raises(ValueError, match=r"must be two or three|no items in common"):
            build_questions(items, methods, "ada")


def test_rater_continues_with_the_unanswered_questions(tmp_path):
    run = finished_run(tmp_path / "run")
    questions = build_questions(read_run(run), ["plain", "seedselect"], "ada")
    ratings = Ratings(tmp_path / "ratings", str(run), "ada")
    ratings.add(questions[0], 1)
    ratings.add(questions[1], 0)
    second = Ratings(tmp_path / "ratings", str(run), " ada ")
    other_rater = Ratings(tmp_path / "ratings", str(run), "bob")
    assert second.unanswered(questions) == questions[2:]
    assert len(other_rater.unanswered(questions)) == 4
    assert list(second.table()["choice"]) == [questions[0].order[0], "tie"]
    with pytest.raises(ValueError, match="answer: must be 1 to 2"):
        ratings.add(questions[2], 3)


@pytest.mark.parametrize("name", ["", " ", "..", "a/b", "x" * 61, "../up"])
def test_invalid_rater_names_raise_an_error(name):
    with pytest.raises(ValueError, match="enter your name"):
        validate_rater(name)
