"""What the page does, without the page."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import experiments.app.context
from experiments.app.__main__ import configured, made, settings_of
from experiments.app.edits import as_weights, controls, edited_picture, how_to_edit, invert_picture
from experiments.app.rare import select_live
from experiments.app.ratings import Ratings, checked_rater, methods_of, questions, read_run
from experiments.app.seed_files import read_seed, write_seed
from experiments.app.seeds import POINTS, between, invert_several, norm_figure, one_each
from experiments.app.uploads import fitted, read_examples, read_picture, shown
from rnri.editing import Injection, PromptToPrompt
from tests.experiments.app.runs import finished_run

BOUNDS = {"most_bytes": 1_000_000, "most_pixels": 10_000}
CAMEL = "a drawing of a camel on a white background"


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def studio():
    return made(configured(["steps=2", "method.nfe_per_step=2", "select.iterations=2"]))


@pytest.fixture(scope="module")
def inverted(studio):
    example = studio.examples[0]
    told = []
    found = invert_picture(studio, example.image, example.prompt, lambda done, steps: told.append((done, steps)))
    assert told == [(1, 2), (2, 2)]
    return found


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "is empty"),
        (b"this is no picture", "is no image"),
        (png(Image.new("RGB", (200, 100))), "20,?000|200 x 100 pixels"),
        (b"x" * 1_000_001, "at most 1 MB"),
        (png(Image.effect_noise((90, 90), 50))[:3000], "damaged"),
    ],
)
def test_bad_uploads_are_refused_in_a_sentence(data, says, tmp_path):
    (tmp_path / "cat.png").write_bytes(data)
    for source in (tmp_path / "cat.png", data):
        with pytest.raises(ValueError, match=says) as caught:
            read_picture(source, (16, 16), name="cat.png", **BOUNDS)
        assert "cat.png" in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_pictures_are_fitted_upright_on_white():
    clear = Image.new("RGBA", (30, 60), (255, 0, 0, 0))
    assert np.asarray(fitted(clear, (16, 8))).min() == 255 and fitted(clear, (16, 8)).size == (8, 16)
    turned = Image.new("RGB", (40, 20), "blue")
    turned.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    data = io.BytesIO()
    turned.save(data, "PNG", exif=exif)
    upright = read_picture(data.getvalue(), (40, 20), **BOUNDS)
    assert upright.size == (20, 40) and upright.getpixel((19, 0)) == (255, 255, 255)
    assert shown(Image.new("RGB", (64, 64))).size == (384, 384) and shown(upright).size == (400, 800)


def test_examples_come_from_a_folder_with_texts(tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red square\n")
    found = read_examples(tmp_path, (16, 16), **BOUNDS)
    assert [(example.prompt, example.image.size) for example in found] == [("a red square", (16, 16))]
    assert read_examples(None, (16, 16), **BOUNDS) == []
    (tmp_path / "none").mkdir()
    for place in (tmp_path / "none", tmp_path / "absent"):
        with pytest.raises(ValueError, match="examples="):
            read_examples(place, (16, 16), **BOUNDS)


def test_an_edit_keeps_the_inversion_and_no_edit_is_the_reconstruction(studio, inverted):
    how = how_to_edit(studio.model.family, cross=0.4, self_attention=0.4, weights="", blend="", share=0.2)
    before, after = edited_picture(studio, inverted.seed, inverted.seed.prompt, how)
    assert np.array_equal(before, after) and before.size == studio.model.image_size[::-1]
    again, other = edited_picture(studio, inverted.seed, "a drawing of a red dog on a pink background", how)
    assert np.abs(np.asarray(again, int) - np.asarray(before, int)).max() <= 1 and not np.array_equal(again, other)
    assert "2 of 2" in inverted.words or "of 2 steps are solved" in inverted.words


def test_settings_of_an_edit_are_read(studio):
    family = studio.model.family
    given = {"cross": 0.3, "self_attention": 0.6, "weights": "old dog=2, red=0.5", "blend": "dog, cat", "share": 0.9}
    how = how_to_edit(family, **given)
    assert how == PromptToPrompt(0.3, 0.6, weights={"old dog": 2.0, "red": 0.5}, blend=("dog", "cat"))
    assert controls(family) == ("cross", "self_attention", "weights", "blend")
    assert how_to_edit(object(), **given) == Injection(share=0.9) and controls(object()) == ("share",)
    for text in ("dog", "dog=", "dog=two", "=2", "dog=inf"):
        with pytest.raises(ValueError, match="word weights"):
            as_weights(text)


@pytest.mark.parametrize("prompt", ["", "  "])
def test_empty_prompts_are_refused(studio, inverted, prompt):
    with pytest.raises(ValueError, match="prompt is empty"):
        invert_picture(studio, studio.examples[0].image, prompt)
    with pytest.raises(ValueError, match="prompt is empty"):
        edited_picture(studio, inverted.seed, prompt, PromptToPrompt())
    with pytest.raises(ValueError, match="prompt is empty"):
        next(select_live(studio, prompt, [studio.examples[0].image]))


def test_a_seed_comes_back_from_its_file(studio, inverted, tmp_path):
    path = write_seed(inverted.seed, tmp_path)
    found = read_seed(path, studio)
    assert torch.equal(found.latents, inverted.seed.latents)
    assert replace(found, latents=None) == replace(inverted.seed, latents=None)
    assert found.words == inverted.seed.words and found.digest[:16] in path.name and "4 x 16 x 16" in found.words


def test_other_files_are_no_seeds(studio, inverted, tmp_path):
    seed = inverted.seed
    wrong = {
        "another model": replace(seed, fingerprint="0" * 64),
        "this model takes": replace(seed, latents=seed.latents[..., :8]),
        "not finite": replace(seed, latents=torch.full_like(seed.latents, torch.nan)),
        "guidance": replace(seed, guidance=0.5),
    }
    for says, each in wrong.items():
        with pytest.raises(ValueError, match=says):
            read_seed(write_seed(each, tmp_path), studio)
    (tmp_path / "text.safetensors").write_text("no seed")
    with pytest.raises(ValueError, match=r"text\.safetensors is no seed"):
        read_seed(tmp_path / "text.safetensors", studio)


def test_the_path_and_the_averages_are_sampled(studio):
    pictures = [example.image for example in studio.examples[:2]]
    seeds = invert_several(studio, pictures, one_each(CAMEL, 2))
    found = between(studio, seeds, CAMEL)
    assert len(found.pictures) == POINTS and {len(norms) for norms in found.norms.values()} == {POINTS}
    ends = seeds.double().flatten(1).norm(dim=1).tolist()
    for norms in found.norms.values():
        assert [norms[0], norms[-1]] == pytest.approx(ends, rel=1e-5)
    assert found.averages[0][0] == "NAO centroid" and len(found.averages) == 4
    assert norm_figure(found, 3).axes[0].lines[-1].get_xdata()[0] == 4


def test_descriptions_are_one_for_all_or_one_each():
    assert one_each(" a \n\n b ", 2) == ["a", "b"] and one_each("a", 3) == ["a"] * 3
    with pytest.raises(ValueError, match="2 descriptions for 3 images"):
        one_each("a\nb", 3)


def test_the_number_of_images_is_bounded(studio):
    one = [studio.examples[0].image]
    with pytest.raises(ValueError, match="two to 8"):
        invert_several(studio, one, [CAMEL])
    for references in ([], one * 6):
        with pytest.raises(ValueError, match="one to 5"):
            next(select_live(studio, CAMEL, references))


def test_seedselect_is_watched_and_stopped(studio):
    walk = select_live(studio, CAMEL, [example.image for example in studio.examples[:2]])
    found = list(walk)
    assert [each.iteration for each in found] == [0, 1, 2] and {each.iterations for each in found} == {2}
    best = [each.best_loss for each in found]
    assert best == sorted(best, reverse=True) and best == [min(e.loss for e in found[: k + 1]) for k in range(3)]
    stopped = select_live(studio, CAMEL, [studio.examples[0].image])
    first = next(stopped)
    stopped.close()
    assert first.seed.prompt == CAMEL and not studio.lock.locked()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="method: EDICT needs more than a seed"):
        made(configured(["method=edict"]))
    for override, says in (
        ("steps=0", "steps=0"), ("port=99999", "port=99999"), ("methods=[one]", "methods"), ("pixels=many", "pixels"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            settings_of(configured([override]))
    assert experiments.app.context.default_steps(1) < experiments.app.context.default_steps(7.5)


def test_a_run_is_read_and_lost_samples_are_left_out(tmp_path):
    run = finished_run(tmp_path, lost={("plain", "camel", 0)})
    items = read_run(run)
    assert methods_of(items) == ["plain", "seedselect"] and len(items) == 3
    assert {item.prompt for item in items} == {"a drawing of a camel", "a drawing of a owl"}
    for item in items:
        assert item.made["plain"].read().getpixel((0, 0)) == (40, 40, 40)
        assert item.made["seedselect"].read().getpixel((0, 0)) == (200, 200, 200)


def test_folders_that_are_no_finished_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"results\.json is missing"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="two methods"):
        read_run(finished_run(tmp_path, ways={"plain": 1}))


def test_order_and_sides_are_random_and_the_rater_s_own(tmp_path):
    items = read_run(finished_run(tmp_path)) * 8
    asked = questions(items, ["plain", "seedselect"], "ada")
    assert asked == questions(items, ["seedselect", "plain"], "ada") != questions(items, ["plain", "seedselect"], "bob")
    assert {question.order for question in asked} == {("plain", "seedselect"), ("seedselect", "plain")}
    for methods in (["plain"], ["a", "b", "c", "d"], ["plain", "absent"]):
        with pytest.raises(ValueError, match=r"compare two or three|nothing in common"):
            questions(items, methods, "ada")


def test_a_rater_goes_on_where_it_stopped(tmp_path):
    run = finished_run(tmp_path / "run")
    asked = questions(read_run(run), ["plain", "seedselect"], "ada")
    ratings = Ratings(tmp_path / "ratings", str(run), "ada")
    ratings.add(asked[0], 1)
    ratings.add(asked[1], 0)
    again = Ratings(tmp_path / "ratings", str(run), " ada ")
    assert again.open(asked) == asked[2:] and len(Ratings(tmp_path / "ratings", str(run), "bob").open(asked)) == 4
    assert list(again.table()["choice"]) == [asked[0].order[0], "tie"]
    with pytest.raises(ValueError, match="no answer"):
        ratings.add(asked[2], 3)


@pytest.mark.parametrize("name", ["", " ", "..", "a/b", "x" * 61, "../up"])
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(ValueError, match="give your name"):
        checked_rater(name)
