"""Jobs of an inversion experiment: one job per method, setting and batch of images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.data.concepts import Concept
from experiments.inversion.jobs import (
    VAE_BOUND,
    ImagePrompt,
    Setting,
    from_concepts,
    generated_images,
    jobs,
    mismatched,
)
from rnri import FixedPoint, ImplicitInverter
from rnri.methods import ALL_METHODS, EDICT

EDICT_ONLY = {"edict": EDICT()}


def concepts() -> list[Concept]:
    generator = np.random.default_rng(0)
    return [
        Concept(name, f"a {name}", 5, "tail", generator.integers(0, 255, (count, 3, 4, 4), dtype=np.uint8))
        for name, count in (("cat", 2), ("dog", 2), ("owl", 1))
    ]


def images(count: int | None = 3) -> list[ImagePrompt]:
    return from_concepts(concepts(), count, torch.Generator().manual_seed(0))


def test_every_concept_comes_once_before_any_comes_twice():
    selected = images(5)
    assert {image.concept for image in selected[:3]} == {"cat", "dog", "owl"}
    assert len({image.key for image in selected}) == 5


def test_smaller_selection_is_a_prefix_of_a_larger_one():
    assert [image.key for image in images(2)] == [image.key for image in images(5)[:2]]


def test_number_of_images_is_a_maximum():
    assert len(images(6)) == len(images(None)) == len(images(5)) == 5


def test_generated_images_take_prompts_in_turn_with_different_noise():
    prompts = images(2)
    generated = generated_images(prompts, 5)
    assert [image.prompt for image in generated] == [prompts[k % 2].prompt for k in range(5)]
    assert len({image.name for image in generated}) == 5  # the name is the key of the noise


def test_setting_with_generated_images_has_their_exact_number():
    all_jobs = jobs(EDICT_ONLY, [Setting(4, generated=True, images=5)], images(2), 8)
    (job,) = (job for job in all_jobs if job.inverter)
    assert [image.name for image in job.images] == [image.name for image in generated_images(images(2), 5)]


def test_wrong_prompts_belong_to_other_concepts():
    for image, wrong in zip(images(5), mismatched(images(5)), strict=True):
        assert wrong.name == image.name
        assert wrong.prompt != image.prompt
    with pytest.raises(ValueError, match="two or more concepts"):
        mismatched(images(1))


def test_each_method_setting_and_batch_is_one_job():
    methods = {"aidi": ImplicitInverter(FixedPoint()), "edict": EDICT()}
    settings = [Setting(4, nfe=[2, 3], methods=["aidi"]), Setting(4), Setting(4, nfe=2, methods=["aidi"])]
    all_jobs = jobs(methods, settings, images(3), batch_size=2)
    per_batch = {(job.method, job.setting.nfe) for job in all_jobs}
    assert per_batch == {(VAE_BOUND, None), ("aidi", 2), ("aidi", 3), ("aidi", None), ("edict", None)}
    assert len(all_jobs) == 2 * len(per_batch)


def test_nfe_of_a_setting_reaches_the_solver():
    all_jobs = jobs({"aidi": ImplicitInverter(FixedPoint())}, [Setting(4, nfe=2)], images(1), 1)
    (job,) = (job for job in all_jobs if job.inverter)
    assert job.inverter.solver.iterations == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting(4, methods=["bidi"]), "'bidi'"),
        (Setting(4, nfe=3, methods=["edict"]), "nfe=3 of the method 'edict'"),
        (Setting(4, nfe=5, methods=["ddim"]), "nfe=5 of the method 'ddim': this method has a fixed number"),
        (Setting(4, nfe=1, methods=["aidi"]), "nfe=1 of the method 'aidi': FixedPoint needs at least 2"),
    ],
)
def test_rejects_unknown_methods_and_fixed_nfe(setting, message):
    methods = {**EDICT_ONLY, "ddim": ALL_METHODS["ddim"](), "aidi": ALL_METHODS["aidi"]()}
    with pytest.raises(ValueError, match=message):
        jobs(methods, [setting], images(2), 2)


def test_edit_replaces_a_part_of_the_sampling_prompt_only():
    setting = Setting(4, edit=["a ", "the "])
    assert setting.target("a cat") == "the cat"
    assert setting.prompt_label == "a  -> the "
    for job in jobs(EDICT_ONLY, [setting], images(), 8):
        assert [image.prompt for image in job.images] == [image.prompt for image in images()]  # of the inversion


def test_rejects_an_edit_that_no_prompt_contains():
    with pytest.raises(ValueError, match=r"edit=\['photo', 'sketch'\]: the prompt 'a (cat|dog|owl)' does not contain"):
        jobs(EDICT_ONLY, [Setting(4, edit=["photo", "sketch"])], images(), 8)


def test_an_edit_replaces_whole_words_only():
    setting = Setting(4, edit=["cat", "dog"])
    assert setting.target("A Cat.") == "A dog."
    cathedral = [replace(images(1)[0], prompt="a cathedral at night")]
    with pytest.raises(ValueError, match="the prompt 'a cathedral at night' does not contain 'cat' as whole words"):
        jobs(EDICT_ONLY, [setting], cathedral, 8)


@pytest.mark.parametrize("edit", ["photo", ["photo"], ["photo", ""]])
def test_rejects_an_edit_that_is_not_two_strings(edit):
    with pytest.raises(ValueError, match="edit"):
        Setting(4, edit=edit)


def test_rejects_an_edit_with_wrong_prompts():
    with pytest.raises(ValueError, match="must be caption with an edit, got wrong"):
        Setting(4, edit=["a", "the"], prompt="wrong")


def test_prompts_are_expanded_and_the_empty_prompt_replaces_the_caption():
    setting = Setting(4, nfe=[2, 3], prompt=["caption", "empty"])
    each = setting.each()
    assert [(s.prompt_label, s.nfe) for s in each] == [("caption", 2), ("caption", 3), ("empty", 2), ("empty", 3)]
    assert [(s.source("a cat"), s.target("a cat"), s.scored("a cat")) for s in each[1:3]] == [
        ("a cat", "a cat", "a cat"), ("", "", "a cat")
    ]  # fmt: skip


def test_each_prompt_has_a_vae_bound():
    all_jobs = jobs(EDICT_ONLY, [Setting(4, prompt=["caption", "empty"])], images(), 8)
    bounds = [job for job in all_jobs if not job.inverter]
    assert [job.setting.prompt_label for job in bounds] == ["caption", "empty"]
    assert bounds[0].key == bounds[1].key  # the same images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompt": "empty", "guidance": 3.0},
            "guidance: must be 1 with prompt=empty, got 3; set guidance=1, or",
        ),
        ({"prompt": ["caption", "empty"], "guidance": 3.0}, "guidance: must be 1 with prompt=empty"),
        ({"prompt": "empty", "edit": ["a", "the"]}, "prompt: must be caption with an edit, got empty; remove edit or"),
        ({"prompt": "none"}, "prompt: "),
        ({"prompt": []}, "prompt: "),
    ],
)
def test_rejects_prompts_that_exclude_other_options(options, message):
    with pytest.raises(ValueError, match=message):
        Setting(4, **options)
