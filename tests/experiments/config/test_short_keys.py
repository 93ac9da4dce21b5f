"""Short keys choose methods, arms, settings and images by name and number."""

import pytest
from omegaconf import OmegaConf

from experiments.config.short_keys import SHORT_KEYS, apply_short_keys, list_error
from rnri.validation import ConfigError
from tests.commands import composed

SETTING = {"_target_": "experiments.inversion.jobs.Setting"}


def applied(*overrides: str) -> dict:
    """Return the task of a config after its short keys are applied."""
    config = composed(*overrides)
    apply_short_keys(config)
    return OmegaConf.to_container(config, resolve=False)["task"]


def test_methods_and_steps_replace_the_settings():
    task = applied("experiment=reconstruction", "methods=[ddim,aidi,renoise_one_window]", "steps=10", "images=8")
    methods = ["ddim", "aidi", "renoise_one_window"]
    assert task["settings"] == [{**SETTING, "methods": methods, "steps": 10, "guidance": 1.0}]
    assert task["images"] == 8
    assert task["methods"]["renoise_one_window"]["_target_"]  # this experiment does not define the method


def test_methods_keep_the_numbers_of_steps_and_the_guidance_of_the_experiment():
    settings = applied("experiment=reconstruction", "methods=[ddim]")["settings"]
    assert [(each["steps"], each.get("images")) for each in settings] == [(50, 8), (4, None)]
    (guided,) = applied("experiment=guidance", "methods=[aidi_adjusted]", "nfe=[5,12]")["settings"]
    assert guided == {**SETTING, "methods": ["aidi_adjusted"], "steps": 20, "guidance": 7.5, "nfe": [5, 12]}


def test_lists_of_steps_and_guidance_make_one_setting_each():
    settings = applied("experiment=flow", "methods=fireflow", "steps=[4,8]", "guidance=[1,3]")["settings"]
    assert [(each["steps"], each["guidance"]) for each in settings] == [(4, 1), (4, 3), (8, 1), (8, 3)]


def test_steps_alone_keep_the_other_values_of_each_setting():
    settings = applied("experiment=parameterization", "steps=4")["settings"]
    assert [(each["steps"], each["nfe"]) for each in settings] == [(4, 1), (4, [2, 3, 5])]
    wrong = applied("experiment=convergence", "images=all")
    assert [each.get("prompt") for each in wrong["settings"]] == [None, None, None, "wrong"]
    assert wrong["images"] == "all" and not any("images" in each for each in wrong["settings"])


def test_prompts_make_one_setting_each_and_the_empty_prompt_keeps_guidance_1():
    settings = applied("experiment=flow", "methods=ddim", "steps=4", "guidance=3", "prompt=[caption,empty]")["settings"]
    assert [(each.get("prompt"), each["guidance"]) for each in settings] == [(None, 3), ("empty", 1)]
    settings = applied("experiment=flow", "guidance=3")["settings"]
    assert {(each.get("prompt"), each["guidance"]) for each in settings} == {(None, 3), ("empty", 1)}
    settings = applied("experiment=flow", "prompt=caption")["settings"]
    assert len(settings) == 12 and not any("prompt" in each for each in settings)


def test_methods_of_editing_and_interpolation_are_selected():
    editing = applied("experiment=editing", "methods=[ddim,flow_edit,renoise]", "steps=10", "images=3", "guidance=2")
    assert list(editing["methods"]) == ["ddim", "renoise"] and list(editing["extra_methods"]) == ["flow_edit"]
    assert (editing["steps"], editing["count"], editing["guidance"]) == (10, 3, 2)
    assert list(applied("experiment=interpolation", "methods=[ddim,renoise]")["inversions"]) == ["ddim", "renoise"]


def test_arms_are_selected():
    assert list(applied("arms=[plain,seedselect_ours]")["arms"]) == ["plain", "seedselect_ours"]


def test_null_networks_of_an_inversion_experiment_are_omitted():
    task = applied("experiment=reconstruction", "data.clip_score=null", "data.classifier=null")
    assert task["clip"] is None
    assert applied("data.clip=null")["clip"]["path"]  # rare concepts need CLIP, so that its validation reports the key


def test_config_without_short_keys_is_unchanged():
    config = composed("experiment=reconstruction")
    before = OmegaConf.to_container(config, resolve=False)
    apply_short_keys(config)
    after = OmegaConf.to_container(config, resolve=False)
    assert after == {name: value for name, value in before.items() if name not in SHORT_KEYS}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["experiment=reconstruction", "methods=[magic]"],
            "methods: 'magic' is not a method; choose among ddim,",
        ),
        (["experiment=guidance", "methods=[magic]"], "aidi_adjusted, gradient_descent_adjusted"),
        (["experiment=reconstruction", "methods=[]"], "methods: must be a list of names, such as methods=[a,b], got"),
        (["methods=[ddim]"], "methods: the experiment rare_concepts has no methods; choose arms="),
        (
            ["experiment=pretrain_clip", "methods=[ddim]"],
            "methods: the experiment pretrain_clip has no methods; remove",
        ),
        (["arms=[magic]"], "arms: 'magic' is not an arm of rare_concepts; choose among plain, seedselect_ddim"),
        (["experiment=flow", "arms=[plain]"], "arms: the experiment flow has no key task.arms; remove arms."),
        (["experiment=reconstruction", "nfe=2"], "nfe: requires methods=[...]"),
        (["experiment=editing", "nfe=2"], "nfe: the experiment editing does not set the number of network"),
        (
            ["experiment=flow", "prompt=none"],
            "prompt: must be some of caption, empty, wrong, got none; write",
        ),
        (["experiment=editing", "prompt=empty"], "prompt: the experiment editing does not set the prompt; remove"),
        (["experiment=flow", "images=0"], "images: must be an integer >= 1 or all, got 0."),
        (
            ["images=3"],
            "images: the experiment rare_concepts has no key task.images; set data.concepts or task.samples.",
        ),
        (["guidance=3"], "guidance: the experiment rare_concepts has no key task.guidance; remove guidance."),
    ],
)
def test_invalid_short_key_raises(overrides, message):
    with pytest.raises(ConfigError) as error:
        applied(*overrides)
    assert message in str(error.value)


def test_list_for_a_mapping_names_the_short_key():
    message = list_error(["experiment=flow", "task.methods=[ddim,aidi]"])
    assert (
        message == "task.methods: must be a mapping from names to objects, got [ddim,aidi]; write methods=[ddim,aidi]."
    )
    assert list_error(["task.arms=[plain]"]).endswith("write arms=[plain].")
    assert list_error(["task.methods.ddim.steps=[1]", "task.methods={}", "+task.settings=[a"]) is None
