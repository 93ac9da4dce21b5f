"""The computations of the tabs Seeds, Rare concept and Compare, without Gradio."""

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from experiments.app import rare
from experiments.app.__main__ import build_context, compose_config, parse_settings
from experiments.app.compare_tab import open_session
from experiments.app.example_sets import PAIRS, RARE_CONCEPTS, example_pairs, rare_concept_sets
from experiments.app.rare import iterate_seedselect, loss_figure, nearest_references, plain_samples
from experiments.app.ratings import Ratings, build_questions, methods_of, read_run, validate_rater
from experiments.app.seeds import (
    END_FRAME_MS,
    FRAME_MS,
    NUM_POINTS,
    VIDEO_FPS,
    blended_predictor,
    broadcast_prompts,
    explore,
    invert_batch,
    invert_images,
    norm_figure,
    sample_images,
    write_gif,
    write_mp4,
)
from experiments.evaluation.classifier import classify_images
from tests.experiments.app.runs import finished_run

CAMEL = "a drawing of a camel on a white background"
FOX = "a drawing of a fox on a white background"


@pytest.fixture(scope="module")
def context():
    return build_context(compose_config(["steps=2", "method=accelerated", "select.iterations=2"]))


@pytest.mark.slow
def test_path_between_different_prompts_ends_at_both_images(context):
    seeds = context.model.noise([0, 1], 0).cpu()
    prompts = [CAMEL, FOX]
    result = explore(context, seeds, prompts)
    for end, k in ((0, 0), (-1, 1)):
        (expected,) = sample_images(context, seeds[k : k + 1], prompts[k : k + 1])
        assert np.abs(np.asarray(result.images[end], int) - np.asarray(expected, int)).max() <= 1
    first_prompt_only = explore(context, seeds, prompts[:1] * 2).images[-1]
    assert np.abs(np.asarray(result.images[-1], int) - np.asarray(first_prompt_only, int)).max() > 10


@pytest.mark.slow
def test_blended_embeddings_are_weighted_means(context):
    weights = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    prompts = [CAMEL, FOX]
    embeddings = context.model.predictor(prompts, 2.0).denoiser.positive.text
    denoiser = blended_predictor(context.model, prompts, weights, 2.0).denoiser
    assert torch.equal(denoiser.positive.text[0], embeddings[0])
    torch.testing.assert_close(denoiser.positive.text[1], 0.25 * embeddings[0] + 0.75 * embeddings[1])
    assert len(denoiser.negative) == 2


def test_animation_shows_the_path_forward_and_backward(tmp_path):
    images = [Image.new("RGB", (64, 64), (80 * k, 0, 0)) for k in range(4)]
    with Image.open(write_gif(images, tmp_path / "path.gif")) as gif:
        frames = [frame.convert("RGB").getpixel((0, 0))[0] for frame in ImageSequence.Iterator(gif)]
    assert frames == pytest.approx([0, 80, 160, 240, 160, 80], abs=4)


def test_video_shows_the_path_forward_and_backward(tmp_path):
    images = [Image.new("RGB", (65, 65), (80 * k, 0, 0)) for k in range(4)]
    with av.open(str(write_mp4(images, tmp_path / "path.mp4"))) as video:
        assert video.streams.video[0].codec_context.name == "h264"
        frames = [frame.to_image() for frame in video.decode(video=0)]
    assert frames[0].size == (390, 390) and len(frames) == VIDEO_FPS * (2 * END_FRAME_MS + 4 * FRAME_MS) // 1000
    reds = [frame.getpixel((0, 0))[0] for frame in frames]
    ends = VIDEO_FPS * END_FRAME_MS // 1000
    assert reds[0] == pytest.approx(0, abs=8) and reds[ends + 6 : 2 * ends + 6] == pytest.approx([240] * ends, abs=8)
    assert reds[-1] == pytest.approx(80, abs=8)


def test_example_sets_are_drawings_of_rare_concepts_and_pairs(context):
    sets = rare_concept_sets(context)
    assert sets[0].label == "volcano (8 captions)" and len(sets) == len(RARE_CONCEPTS)
    assert {len(each.images) for each in sets} == {3} and {len(set(each.prompts)) for each in sets} == {1}
    pairs = example_pairs(context)
    assert len(pairs) == len(PAIRS) and [len(set(pair.prompts)) for pair in pairs] == [1, 2, 2]
    assert not np.array_equal(*pairs[0].images)


def test_example_sets_of_a_folder_have_equal_prompts(context, tmp_path):
    for k, prompt in enumerate(("a fox", "a fox", "a fox", "a fox", "an owl", "")):
        Image.new("RGB", (9, 9), (40 * k, 0, 0)).save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(prompt)
    folder = replace(context, examples_from=str(tmp_path))
    assert [(each.label, len(each.images)) for each in rare_concept_sets(folder)] == [("a fox", 3)]
    assert [(each.label, len(each.images)) for each in example_pairs(folder)] == [("a fox", 2)]
    without = replace(context, examples_from=None)
    assert rare_concept_sets(without) == example_pairs(without) == []


def test_copy_is_nearer_to_a_reference_than_the_references_are_to_each_other(context):
    references = rare_concept_sets(context)[0].images
    copy, new = nearest_references(context, [references[2], Image.new("RGB", references[0].size)], references)
    assert (
        copy.number == 3 and copy.distance == pytest.approx(0, abs=1e-5) and copy.text.startswith("copy of reference 3")
    )
    assert new.distance > new.threshold and new.text.startswith("new; nearest is reference ")
    (single,) = nearest_references(context, [references[2]], references[:1])
    assert single.threshold is None and single.text.startswith("distance to the reference ")
    assert nearest_references(replace(context, classifier=None), references, references) is None


def test_last_answer_can_be_undone(tmp_path):
    run = finished_run(tmp_path / "run")
    questions = build_questions(read_run(run), ["plain", "seedselect"], "ada")
    ratings = Ratings(tmp_path / "ratings", str(run), "ada")
    ratings.add(questions[0], 1)
    ratings.add(questions[1], 2)
    ratings.remove_last()
    assert ratings.unanswered(questions) == questions[1:] and len(ratings.table()) == 1
    ratings.remove_last()
    assert ratings.unanswered(questions) == questions and not list((tmp_path / "ratings").iterdir())
    with pytest.raises(ValueError, match="there is no answer to undo"):
        ratings.remove_last()


def test_example_run_is_shown_without_a_run(tmp_path):
    settings = parse_settings(compose_config([f"ratings={tmp_path}"]))
    session = open_session(settings)
    assert session.is_example and session.show_results
    assert session.methods == ["plain", "seedselect_rnri", "between_ours"]
    assert len(session.items) == 5 and {len(images) for images in session.references.values()} == {3}
    assert {item.concept for item in session.items} == set(session.references)
    size = sum(path.stat().st_size for path in Path(session.run).rglob("*") if path.is_file())
    assert size < 300_000
    other = open_session(replace(settings, run=str(finished_run(tmp_path / "run"))))
    assert not other.is_example and not other.show_results and other.references == {}
    with pytest.raises(ValueError, match="methods: the run has no method 'best'; choose from plain, seedselect"):
        open_session(replace(settings, run=other.run, methods=["plain", "best"]))


def test_references_that_cannot_be_read_are_left_out_with_a_warning(tmp_path, caplog):
    run = finished_run(tmp_path / "run")
    source = {"_target_": "experiments.data.concepts.EmojiConcepts", "folder": str(tmp_path / "moved")}
    source |= {"prompt": "a drawing of {phrase}", "background": "white", "head": 1000, "tail": 42}
    (run / "config.yaml").write_text(json.dumps({"task": {"source": source, "references": 3}}))
    session = open_session(parse_settings(compose_config([f"run={run}"])))
    assert session.references == {} and "shows no references" in caplog.text and str(tmp_path / "moved") in caplog.text


@pytest.mark.slow
def test_images_of_the_path_and_the_averages_are_generated(context):
    images = [example.image for example in context.examples[:2]]
    prompts = broadcast_prompts(CAMEL, 2)
    seeds = invert_images(context, images, prompts)
    result = explore(context, seeds, prompts)
    assert len(result.images) == NUM_POINTS and {len(norms) for norms in result.norms.values()} == {NUM_POINTS}
    ends = seeds.double().flatten(1).norm(dim=1).tolist()
    for norms in result.norms.values():
        assert [norms[0], norms[-1]] == pytest.approx(ends, rel=1e-5)
    assert [average.name for average in result.averages] == ["Mean", "Spherical mean", "NAO centroid"]
    for average in result.averages:
        assert f"{100 * average.norm / result.typical_norm:.0f} % of the typical norm" in average.description
    assert norm_figure(result, 3).axes[0].lines[-1].get_xdata()[0] == 4


@pytest.mark.slow
def test_seedselect_yields_iterations_and_can_be_stopped(context):
    iterations = iterate_seedselect(context, CAMEL, [example.image for example in context.examples[:2]])
    progress = list(iterations)
    assert [step.iteration for step in progress] == [0, 1, 2] and {step.iterations for step in progress} == {2}
    best = [step.best_loss for step in progress]
    assert best == sorted(best, reverse=True)
    assert best == [min(step.loss for step in progress[: k + 1]) for k in range(3)]
    assert len(progress[0].plain_losses) == len(plain_samples(context, CAMEL)) == 3
    losses = [step.loss for step in progress]
    assert list(loss_figure(losses, progress[0].plain_losses, 2).axes[0].lines[3].get_ydata()) == losses
    stopped = iterate_seedselect(context, CAMEL, [context.examples[0].image])
    first = next(stopped)
    stopped.close()
    assert first.seed.prompt == CAMEL and not context.lock.locked()


def test_run_is_read_without_lost_samples(tmp_path):
    run = finished_run(tmp_path, lost={("plain", "camel", 0)})
    items = read_run(run)
    assert methods_of(items, run) == ["plain", "seedselect"] and len(items) == 3
    (run / "results.json").write_text(json.dumps({"rows": [{"method": "seedselect"}, {"method": "plain"}]}))
    assert methods_of(items, run) == ["seedselect", "plain"]  # the order of the table
    assert {item.prompt for item in items} == {"a drawing of a camel", "a drawing of a owl"}
    for item in items:
        assert item.images["plain"].read().getpixel((0, 0)) == (40, 40, 40)
        assert item.images["seedselect"].read().getpixel((0, 0)) == (200, 200, 200)


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


@pytest.mark.parametrize("name", ["", " ", "..", "a/b", "x" * 61, "../up"])
def test_invalid_rater_names_raise_an_error(name):
    with pytest.raises(ValueError, match="enter your name"):
        validate_rater(name)


def test_number_of_images_is_limited(context):
    one = [context.examples[0].image]
    with pytest.raises(ValueError, match="2 to 8"):
        invert_images(context, one, [CAMEL])
    for references in ([], one * 6):
        with pytest.raises(ValueError, match="1 to 5"):
            next(iterate_seedselect(context, CAMEL, references))
    with pytest.raises(ValueError, match="must be one line"):
        next(iterate_seedselect(context, f"{CAMEL}\na fox", one))


def recognized_concepts(context, images):
    """Return the label that the classifier gives to each image."""
    pixels = [torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()) for image in images]
    return classify_images(context.classifier, pixels)[1]


@pytest.fixture(scope="module")
def inverted_once():
    """Invert the references of each prompt only once: the contexts below differ only in CLIP. Omit the plain losses."""
    inversions = {}

    def once(context, images, prompts):
        key = (tuple(prompts), *(image.tobytes() for image in images))
        if key not in inversions:
            inversions[key] = invert_batch(context, images, prompts)
        return inversions[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rare, "invert_batch", once)
        patch.setattr(rare, "_plain_losses", lambda *_: [])
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("inverted_once")
@pytest.mark.parametrize(
    ("overrides", "recognized"),
    [
        ([], ["volcano", "steaming bowl", "tram", "shortcake"]),
        (["clip=assets/models/clip"], ["tram", "shortcake"]),
    ],
    ids=["default", "clip"],
)
def test_sets_of_rare_concepts_work(overrides, recognized):
    """The figures of the section Rare concept of ``docs/guides/web_page.md``."""
    context = build_context(compose_config(["select.iterations=10", *overrides]))
    best = []
    for name, each in zip(RARE_CONCEPTS, rare_concept_sets(context), strict=True):
        *_, last = iterate_seedselect(context, each.prompts[0], each.images)
        best += [name] * (recognized_concepts(context, [last.best_image]) == [name])
    assert best == recognized


@pytest.mark.slow
def test_no_plain_sample_of_a_rare_concept_is_recognized():
    """The same section of the guide; plain samples do not depend on CLIP."""
    context = build_context(compose_config([]))
    for name, each in zip(RARE_CONCEPTS, rare_concept_sets(context), strict=True):
        assert name not in recognized_concepts(context, plain_samples(context, each.prompts[0]))
