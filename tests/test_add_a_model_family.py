"""The guide *Add a model family*: its code blocks are executed, and the family is used like a built-in one."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import rnri
from rnri.editing import edit
from rnri.models.families import family_of
from rnri.models.family import register_family, registered_families, supported_models

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "add_a_model_family.md"


@pytest.fixture(scope="module")
def page():
    """Names that the page's code blocks define."""
    namespace: dict = {"__name__": "add_a_model_family"}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL):
        exec(block, namespace)
    return namespace


def test_inversion_reconstructs_the_image(page):
    model = rnri.LatentDiffusion(page["pipe"])
    decoded = model.decode(model.encode(page["image"][None]), clamp=False)
    torch.testing.assert_close(page["reconstruction"], decoded, rtol=0, atol=1e-2)


def test_family_is_registered(page):
    family = family_of(page["pipe"])
    assert type(family) is page["ClassFamily"] and page["ClassFamily"] in registered_families()
    assert "class-conditional UNets" in supported_models()
    assert rnri.LatentDiffusion(page["pipe"]).default_guidance == 1


def test_pipeline_class_cannot_be_registered_twice(page):
    with pytest.raises(ValueError, match="ClassPipeline is already registered by ClassFamily"):
        register_family(page["ClassFamily"])


def test_subclass_of_pipeline_belongs_to_family(page):
    class Subclass(page["ClassPipeline"]):
        pass

    components = page["pipe"].components
    assert type(family_of(Subclass(**components))) is page["ClassFamily"]


def test_unregistered_pipeline_is_rejected_with_supported_models(page):
    class UnknownPipeline(DiffusionPipeline):
        pass

    with pytest.raises(
        ValueError, match=r"UnknownPipeline is not a supported .*: load a supported model .*Stable Diffusion 1"
    ):
        rnri.LatentDiffusion(UnknownPipeline())


def test_family_without_attention_editor_rejects_edits(page):
    with pytest.raises(ValueError, match="ClassFamily has no attention editor"):
        edit(page["pipe"], page["inversion"], "dog")
