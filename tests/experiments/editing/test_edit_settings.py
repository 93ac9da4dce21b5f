"""Settings of edits in configs/ reach the classes of rnri.editing, and invalid values are reported with their key."""

import pytest
from hydra.utils import instantiate

from experiments.config.errors import one_line
from experiments.runtime.setup import setup
from rnri.editing import FlowEdit, PromptToPrompt, PseudoGuidance
from tests.commands import composed

METHODS = "task.extra_methods"


def test_settings_reach_the_classes():
    task = composed(
        "experiment=editing",
        "task.prompt_to_prompt.cross=[0.1, 0.5]",
        "task.prompt_to_prompt.self_attention=0.3",
        "+task.prompt_to_prompt.blend_subtract=[hat]",
        "+task.prompt_to_prompt.blend=[dog]",
        f"{METHODS}.flow_edit.n_min=2",
        f"{METHODS}.pseudo_guidance.noise_shift=1",
        f"{METHODS}.pseudo_guidance.max_last_norm=15.5",
    ).task
    attention = instantiate(task.prompt_to_prompt, _convert_="all")
    assert attention == PromptToPrompt([0.1, 0.5], 0.3, blend=["dog"], blend_subtract=["hat"])
    assert instantiate(task.extra_methods.flow_edit) == FlowEdit(source_guidance=1.0, target_guidance=3.0, n_min=2)
    expected = PseudoGuidance(noise_shift=1, max_last_norm=15.5)
    assert instantiate(task.extra_methods.pseudo_guidance) == expected


def test_defaults_are_those_of_the_classes():
    task = composed("experiment=editing", "+method@task.extra_methods.flow=flow_edit").task
    assert instantiate(task.prompt_to_prompt, _convert_="all") == PromptToPrompt()
    assert instantiate(task.extra_methods.flow) == FlowEdit()
    assert instantiate(task.extra_methods.pseudo_guidance) == PseudoGuidance()


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "task.prompt_to_prompt.cross=[0.5, 0.1]",
            "task.prompt_to_prompt.cross: must be a number in [0, 1], or",
        ),
        (
            "task.prompt_to_prompt.self_attention=1.5",
            "task.prompt_to_prompt.self_attention: must be a number",
        ),
        (f"{METHODS}.flow_edit.n_min=-1", f"{METHODS}.flow_edit.n_min: "),
        (f"{METHODS}.pseudo_guidance.noise_shift=0.5", f"{METHODS}.pseudo_guidance.noise_shift: "),
        (f"{METHODS}.pseudo_guidance.max_last_norm=0", f"{METHODS}.pseudo_guidance.max_last_norm: "),
    ],
)
def test_invalid_settings_are_reported_with_their_key(tmp_path, override, message):
    config = composed("experiment=editing", override, f"run_dir={tmp_path}/run", "trainer.accelerator=cpu")
    with pytest.raises(ValueError) as error:
        setup(config)
    assert one_line(error.value).startswith(message)
