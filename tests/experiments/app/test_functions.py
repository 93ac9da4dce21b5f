"""The computations of the web page, without Gradio."""

import io
import os
import re
import socket
from dataclasses import replace

import gradio as gr
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

import rnri
from experiments.app.__main__ import build_context, check_port, check_run, compose_config, parse_settings
from experiments.app.checkpoint_info import WORD, CheckpointInfo, model_sentence, read_checkpoint_info
from experiments.app.context import default_steps, resolve_device
from experiments.app.edit_session import (
    COMPARISONS,
    DEFAULT_SETTINGS,
    VARIANTS,
    YOUR_IMAGE,
    EditSession,
    open_example,
    open_image,
    open_seed,
    variants,
)
from experiments.app.edit_tab import EditTab
from experiments.app.edits import edit_config, edit_controls, edit_image, invert_image, parse_weights, quality
from experiments.app.messages import report_errors
from experiments.app.rare import iterate_seedselect
from experiments.app.ratings import read_run
from experiments.app.seed_files import delete_old_files, read_seed, read_stored_seed, write_image, write_seed
from experiments.app.seeds import (
    add_prompt_lines,
    broadcast_prompts,
)
from experiments.app.uploads import UploadLimits, enlarge, read_examples, read_image, to_pil
from experiments.app.widgets import image_list_input
from experiments.config.project import project_path
from experiments.data.backgrounds import BACKGROUNDS
from experiments.evaluation.classifier import load_classifier
from rnri import LatentDiffusion
from rnri.editing import Injection, PromptToPrompt
from rnri.models.families import family_of
from rnri.seed_file import write_seed_file
from tests.experiments.app.runs import finished_run
from tests.pipelines import tiny_pixart, tiny_sd3

LIMITS = UploadLimits(max_bytes=1_000_000, max_pixels=10_000)
CAMEL = "a drawing of a camel on a white background"
OTHERS = {
    "negative_prompts": ["", ""],
    "num_inference_steps": 2,
    "guidance_scale": 1.0,
    "image_size": [64, 64],
    "scheduler": "LCMScheduler",
}
"""Settings of a seed file, without its prompts."""


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def context():
    return build_context(compose_config(["steps=2", "method=accelerated", "method=accelerated", "select.iterations=2"]))


@pytest.fixture(scope="module")
def default_context():
    return build_context(compose_config([]))


@pytest.fixture(scope="module")
def classifier():
    return load_classifier(project_path("assets/models/classifier"))


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


def test_photos_of_phones_are_read(tmp_path):
    photo = Image.linear_gradient("L").resize((80, 60)).convert("RGB")
    photo.save(tmp_path / "photo.heic", quality=95)
    result = read_image(tmp_path / "photo.heic", (60, 80), LIMITS)
    assert np.abs(np.asarray(result, int) - np.asarray(photo, int)).mean() < 4


def test_large_jpeg_files_are_decoded_at_a_smaller_size(monkeypatch):
    data = io.BytesIO()
    Image.linear_gradient("L").resize((512, 384)).save(data, "JPEG")
    sizes = []
    monkeypatch.setattr("experiments.app.uploads.fit", lambda image, size: sizes.append(image.size))
    read_image(data.getvalue(), (48, 48), UploadLimits(1_000_000, 1_000_000))
    assert sizes == [(128, 96)]  # at least twice the size of the model's images


def test_examples_are_read_from_a_folder_with_prompts(tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red\n square\n")
    result = read_examples(tmp_path, (16, 16), LIMITS)
    assert [(example.prompt, example.image.size) for example in result] == [("a red square", (16, 16))]
    assert result[0].edited_prompts == {}
    (tmp_path / "a.edits.txt").write_text("a blue square\n\na red circle\n")
    assert list(read_examples(tmp_path, (16, 16), LIMITS)[0].edited_prompts) == ["a blue square", "a red circle"]
    assert read_examples(None, (16, 16), LIMITS) == []
    (tmp_path / "none").mkdir()
    for folder in (tmp_path / "none", tmp_path / "absent"):
        with pytest.raises(ValueError, match="examples: "):
            read_examples(folder, (16, 16), LIMITS)


@pytest.mark.slow
def test_edit_with_the_same_prompt_is_the_reconstruction(context, inverted):
    config = edit_config(context.model.family, cross=0.4, self_attention=0.4, weights="", blend="", share=0.2)
    before, after = edit_image(context, inverted, inverted.prompt, config)
    assert np.array_equal(before, after) and before.size == context.model.image_size[::-1]
    again, other = edit_image(context, inverted, "a drawing of a red dog on a pink background", config)
    assert np.abs(np.asarray(again, int) - np.asarray(before, int)).max() <= 1 and not np.array_equal(again, other)
    assert re.fullmatch(r"Reconstruction: \d+\.\d of \d+\.\d dB.*\.", quality(inverted.inversion))


def test_second_sentence_reports_that_the_vae_is_the_limit(inverted):
    class Limited:
        quality = "17.6 of 17.6 dB, as good as the VAE allows"
        vae_psnr = torch.tensor([17.6])

    assert quality(Limited()) == (
        "Reconstruction: 17.6 of 17.6 dB, as good as the VAE allows. "
        "The VAE alone reproduces this image with a PSNR of only 17.6 dB."
    )
    assert "decoder" not in quality(inverted.inversion)


def test_session_keeps_a_history_with_undo(context):
    example = context.examples[0]
    session = open_image(context, example.image, example.prompt, DEFAULT_SETTINGS)
    assert [step.prompt for step in session.history] == [example.prompt]
    with pytest.raises(ValueError, match="no earlier edit"):
        session.undo()
    pink = example.prompt.replace("white", "pink")
    edited = session.render(context, pink, DEFAULT_SETTINGS)
    assert edited.render(context, pink, DEFAULT_SETTINGS) is edited  # is displayed already
    assert edited.undo().step.prompt == example.prompt  # an edit that is not in the history
    edited = edited.remember()
    assert edited.remember() is edited and len(edited.history) == 2
    assert edited.undo().step is session.step and len(edited.undo().history) == 1
    images = [np.asarray(edited.compared_image(name), int) for name in COMPARISONS]
    assert np.array_equal(images[0], example.image)
    assert np.array_equal(images[2], np.abs(images[0] - np.asarray(edited.edited_image, int)))


def test_variants_differ_in_their_strength(context, inverted):
    session = EditSession(image=context.examples[0].image, seed=inverted)
    steps = variants(context, session, inverted.prompt.replace("white", "pink"), DEFAULT_SETTINGS)
    assert list(steps) == list(VARIANTS)
    images = [np.asarray(step.edited, int) for step in steps.values()]
    assert not np.array_equal(images[0], images[2])
    with pytest.raises(ValueError, match="invert an image first"):
        variants(context, EditSession(), "a fox", DEFAULT_SETTINGS)


def test_examples_show_their_first_edit(context):
    example = context.edit_examples[0]
    session = open_example(context, example, DEFAULT_SETTINGS)
    assert session.step.prompt == next(iter(example.edited_prompts.values())) != example.prompt
    assert session.undo().step.prompt == example.prompt
    assert not np.array_equal(session.undo().edited_image, session.edited_image)


@pytest.mark.slow
@pytest.mark.parametrize("example", range(12))
def test_edits_of_the_examples_work(default_context, classifier, example):
    """The edited images show the concept and the background color of the edited prompt."""
    context = default_context
    session = open_example(context, context.edit_examples[example], DEFAULT_SETTINGS)
    drawings = pd.read_parquet(context.examples_from, columns=["phrase", "concept"]).drop_duplicates()
    concepts = dict(drawings.itertuples(index=False))
    for prompt in session.suggestions.values():
        phrase, color = re.fullmatch(r"a drawing of (.*) on a (\w+) background", prompt).groups()
        image = session.render(context, prompt, DEFAULT_SETTINGS).edited_image
        with torch.no_grad():
            logits = classifier(to_tensor(image)[None])[0]
        assert classifier.labels[int(logits.argmax())] == concepts[phrase], prompt
        corners = np.asarray(image, float)[[0, 0, -1, -1], [0, -1, 0, -1]].mean(0)
        distances = {name: np.abs(corners - value).sum() for name, value in BACKGROUNDS.items()}
        assert min(distances, key=distances.get) == color, prompt


def test_words_that_the_model_has_not_learned_are_marked(context):
    info = context.info
    assert info.unknown_words("a drawing of a Fox with sunglasses, 8 on a white background") == ["sunglasses"]
    html = info.mark_unknown_words("a <fox> with sunglasses")
    assert "contain 3 of 4 words" in html and "&lt;fox&gt; with <mark>sunglasses</mark>" in html
    assert info.mark_unknown_words("a fox") == CheckpointInfo().mark_unknown_words("sunglasses") == ""


@pytest.mark.parametrize("model", ["emoji", "emoji_flow"])
def test_words_of_the_embedded_models_are_those_of_the_training_captions(model):
    info = read_checkpoint_info(project_path(f"assets/models/{model}"))
    captions = pd.read_parquet(project_path("assets/emoji/captions.parquet"), columns=["caption"])["caption"].unique()
    words = {word.lower() for caption in captions for word in WORD.findall(caption)}
    assert set(info.words) == words and {f"{color} background" for color in info.backgrounds} <= {
        " ".join(caption.split()[-2:]) for caption in captions
    }
    table = pd.read_parquet(project_path("assets/emoji/drawings-reference.parquet"), columns=["image_id", "phrase"])
    phrases = dict(table.itertuples(index=False))
    for edit in info.edits:
        assert edit.prompt == f"a drawing of {phrases[edit.image_id]} on a white background"
        assert not any(info.unknown_words(prompt) for prompt in edit.edited_prompts.values())


def test_background_edits_replace_the_color_of_the_background():
    info = CheckpointInfo(backgrounds=["white", "pink", "blue"])
    assert info.background_edits("a white cat on a white background") == {
        "pink background": "a white cat on a pink background",
        "blue background": "a white cat on a blue background",
    }
    assert info.background_edits("a white cat") == CheckpointInfo().background_edits("a white background") == {}


def test_checkpoints_without_information_have_only_a_name(tmp_path):
    info = read_checkpoint_info(str(tmp_path))
    assert info == CheckpointInfo()
    assert model_sentence("owner/model", "a/style", info) == "Model: **model** with the LoRA style (`owner/model`)."
    (tmp_path / "page.json").write_text('{"words": 3}')
    with pytest.raises(ValueError, match=r"^model\.path: .*page\.json is not valid"):
        read_checkpoint_info(str(tmp_path))


def test_images_for_download_are_named_by_their_prompt(tmp_path):
    image = Image.new("RGB", (4, 4))
    path = write_image(image, "A fox, on a pink background!", tmp_path)
    assert path.name == "a-fox-on-a-pink-background.png" and Image.open(path).size == (4, 4)
    os.utime(path, (0, 0))
    delete_old_files(tmp_path)
    assert not path.exists()


def test_errors_are_shown_in_one_place():
    with gr.Blocks():
        message, box = gr.HTML(), gr.Textbox()

    def fail():
        raise ValueError("the <prompt> is empty.")

    assert report_errors(fail, message)() == {message: '<p class="error">the &lt;prompt&gt; is empty.</p>'}
    assert report_errors(lambda: {box: "a"}, message)() == {message: "", box: "a"}


def test_edit_settings_are_parsed(context):
    family = context.model.family
    settings = {"cross": 0.3, "self_attention": 0.6, "weights": "old dog=2, red=0.5", "blend": "dog, cat", "share": 0.9}
    assert edit_config(family, **settings) == PromptToPrompt(
        0.3, 0.6, weights={"old dog": 2.0, "red": 0.5}, blend=("dog", "cat")
    )
    assert edit_controls(family) == ("cross", "self_attention", "weights", "blend")
    for pipeline in (tiny_sd3(), tiny_pixart()):  # PixArt has no attention editor
        family = family_of(pipeline)
        assert edit_config(family, **settings) == Injection(share=0.9) and edit_controls(family) == ("share",)
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
        edit_image(context, inverted, "a drawing of a dog", PromptToPrompt())


@pytest.mark.parametrize("prompt", ["", "  "])
def test_empty_prompts_raise_an_error(context, inverted, prompt):
    with pytest.raises(ValueError, match="prompt is empty"):
        invert_image(context, context.examples[0].image, prompt)
    with pytest.raises(ValueError, match="prompt is empty"):
        edit_image(context, inverted, prompt, PromptToPrompt())
    with pytest.raises(ValueError, match="prompt is empty"):
        next(iterate_seedselect(context, prompt, [context.examples[0].image]))


def test_seed_file_round_trip(context, inverted, tmp_path):
    path = write_seed(inverted, tmp_path)
    result = read_seed(path, context)
    assert torch.equal(result.latents, inverted.latents)
    assert replace(result, latents=None, inversion=None) == replace(inverted, latents=None, inversion=None)
    loaded = rnri.load(path)  # the library reads the file of the page
    assert torch.equal(loaded.seed, inverted.inversion.seed) and loaded.quality == inverted.inversion.quality
    assert result.summary == inverted.summary and result.digest[:16] in path.name and "4 x 16 x 16" in result.summary
    assert read_stored_seed(result.digest, context, tmp_path).summary == result.summary
    other = result.digest[:16] + "0" * 48  # the name of the file has only the first digits
    assert read_stored_seed(other, context, tmp_path) is None
    path.unlink()
    assert read_stored_seed(result.digest, context, tmp_path) is None
    assert read_stored_seed("../" + result.digest, context, tmp_path) is None


def test_page_reads_files_of_the_library(context, inverted, tmp_path):
    result = read_seed(inverted.inversion.save(tmp_path / "library.safetensors"), context)
    assert result.fingerprint is None and torch.equal(result.latents, inverted.latents)
    session = open_seed(context, result, DEFAULT_SETTINGS)
    assert np.array_equal(session.image, context.examples[0].image)
    path = write_seed_file(
        tmp_path / "two.safetensors", {"latents": inverted.latents}, {"prompts": ["a", "b"]} | OTHERS
    )
    with pytest.raises(ValueError, match=r"^two\.safetensors contains 2 seeds; save one of them with inversion\[i\]"):
        read_seed(path, context)


def test_invalid_seed_files_raise_an_error(context, inverted, tmp_path):
    seed = replace(inverted, inversion=None)
    invalid = {
        "another model": replace(seed, fingerprint="0" * 64),
        "the model of the page needs": replace(seed, latents=seed.latents[..., :8]),
        "NaN or infinite": replace(seed, latents=torch.full_like(seed.latents, torch.nan)),
        "guidance": replace(seed, guidance=0.5),
    }
    for message, invalid_seed in invalid.items():
        with pytest.raises(ValueError, match=message):
            read_seed(write_seed(invalid_seed, tmp_path), context)
    (tmp_path / "text.safetensors").write_text("not a seed")
    with pytest.raises(ValueError, match=r"text\.safetensors is not a seed file"):
        read_seed(tmp_path / "text.safetensors", context)


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
    with gr.Blocks():
        tab = EditTab(context, tmp_path)
    session = EditSession(image=context.examples[0].image, seed=inverted)
    for prompt, expected in (
        (context.edit_examples[1].prompt, ""),
        (inverted.prompt, ""),
        ("my dog", "my dog"),
    ):
        assert tab._upload(session, YOUR_IMAGE, path, prompt)[tab.prompt] == expected


@pytest.mark.slow
def test_restored_edit_does_not_replace_the_input_of_a_visitor(context, inverted, tmp_path):
    with gr.Blocks():
        tab = EditTab(context, tmp_path)
    defaults = list(tab._defaults().values())
    write_seed(inverted, tmp_path)
    saved = [inverted.digest, "a drawing of a moon on a white background"]
    first = tab.session.value
    assert tab._restore_edit(first, YOUR_IMAGE, defaults, []) == {}
    restored = tab._restore_edit(first, YOUR_IMAGE, defaults, saved)
    assert restored[tab.session].step.prompt == saved[1] and restored[tab.prompt] == inverted.prompt
    for changed in (EditSession(), first.render(context, saved[1], tab._defaults())):
        assert tab._restore_edit(changed, YOUR_IMAGE, defaults, saved) == {}


def test_restored_settings_are_those_that_differ_from_the_defaults(context, tmp_path):
    with gr.Blocks():
        tab = EditTab(context, tmp_path)
    defaults = list(tab._defaults().values())
    updates = tab._restore_settings([defaults[0] / 2, *defaults[1:]])
    assert list(updates.values()) == [defaults[0] / 2] + [gr.skip()] * (len(defaults) - 1)


@pytest.mark.slow
def test_invalid_settings_raise_an_error_that_names_the_key():
    with pytest.raises(ValueError, match="method: EDICT stores more than the seed"):
        build_context(compose_config(["method=edict"]))
    for override in ("steps=0", "port=99999", "methods=[one]", "max_upload_pixels=many"):
        with pytest.raises(ValueError, match=f"^{override.partition('=')[0]}: "):
            parse_settings(compose_config([override]))
    with pytest.raises(ValueError, match=r"^prot: no such key in configs/app\.yaml; did you mean port\?"):
        compose_config(["prot=7861"])
    assert default_steps(1) < default_steps(7.5)


@pytest.mark.slow
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
        ("examples=/nowhere", "^examples: /nowhere does not exist or is not a folder"),
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


def test_folders_without_a_finished_run_raise_an_error(tmp_path):
    for check in (read_run, check_run):
        with pytest.raises(ValueError, match=r"results\.json is missing"):
            check(tmp_path)
    with pytest.raises(ValueError, match="two methods"):
        read_run(finished_run(tmp_path, methods={"plain": 1}))
