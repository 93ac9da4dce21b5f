"""The page ``docs/guides/add_a_method.md`` works: its code blocks are written to files, imported and executed."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import rnri
import rnri.methods
from rnri.methods.registry import import_methods, unregister_method
from tests.pipelines import tiny_stable_diffusion

PAGE = Path("docs/guides/add_a_method.md")
METHOD = "rnri/methods/two_pass.py"
CONFIG = "configs/method/two_pass.yaml"
TEST = "tests/rnri/methods/test_two_pass.py"


def code_blocks() -> list[str]:
    return re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write the page's files into a folder, in which the registry finds the method; unregister it afterwards."""
    for block in code_blocks():
        header = re.match(r"# (\S+/\S+)\n", block)
        if header:
            path = tmp_path / header[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
    monkeypatch.setattr(rnri.methods, "__path__", [*rnri.methods.__path__, str((tmp_path / METHOD).parent)])
    import_methods.cache_clear()
    import_methods()
    yield tmp_path
    unregister_method("two_pass")
    del sys.modules["rnri.methods.two_pass"]
    del rnri.methods.two_pass


def test_page_has_a_method_a_config_and_a_test(project):
    written = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert {METHOD, CONFIG, TEST} <= written


def test_method_is_registered_and_its_config_builds_it(project):
    assert "two_pass" in rnri.METHODS
    row = next(line for line in rnri.methods_table().splitlines() if line.startswith("| `two_pass` |"))
    assert row == "| `two_pass` | `TwoPass` | example of the documentation | – | yes | 2 | all |"
    assert instantiate(OmegaConf.load(project / CONFIG)) == rnri.METHODS["two_pass"]()


def test_tests_of_the_page_pass(project):
    tests = runpy.run_path(str(project / TEST))
    functions = [function for name, function in tests.items() if name.startswith("test_")]
    assert functions
    for function in functions:
        function()


def test_invert_accepts_the_method(project):
    usage = next(block for block in code_blocks() if "rnri.invert(" in block)
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    names = {"rnri": rnri, "pipe": tiny_stable_diffusion(), "image": image}
    exec(usage, names)
    assert names["inversion"].nfe.tolist() == [[2]] * 4


def test_method_is_unregistered_after_the_test():
    assert "two_pass" not in rnri.METHODS
