"""The registry of inversion methods agrees with the configs, the public names and the documentation."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import rnri
from rnri import ImplicitInverter, Inverter
from rnri.methods import ALL_METHODS, METHODS, methods_table
from rnri.methods.registry import register_method, unregister_method

CONFIGS = {path.stem: path for path in Path("configs/method").glob("*.yaml")}
EDITORS = {"flow_edit", "pseudo_guidance"}
"""Configs of editing methods, which have no inversion."""


def test_every_method_has_a_config_and_vice_versa():
    assert set(ALL_METHODS) == set(CONFIGS) - EDITORS


@pytest.mark.parametrize("name", sorted(ALL_METHODS))
def test_config_has_the_default_settings_of_the_method(name):
    assert instantiate(OmegaConf.load(CONFIGS[name])) == ALL_METHODS[name]()


@pytest.mark.parametrize("name", sorted(ALL_METHODS))
def test_every_method_states_its_cost(name):
    inverter = ALL_METHODS[name]()
    assert isinstance(inverter, Inverter)
    assert type(inverter).nfe_per_step is not Inverter.nfe_per_step


def test_methods_are_the_seed_only_methods():
    assert {name for name, method in ALL_METHODS.items() if method().seed_only} == set(METHODS)
    assert rnri.METHODS is METHODS


def test_classes_of_methods_are_public():
    classes = {type(method()) for method in ALL_METHODS.values()} - {ImplicitInverter}
    for cls in classes:
        assert cls.__name__ in rnri.methods.__all__
        assert getattr(rnri.methods, cls.__name__) is cls


def test_unknown_names_raise_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'NoSuchMethod'"):
        _ = rnri.methods.NoSuchMethod


def test_documentation_has_the_generated_table():
    assert methods_table() in Path("docs/reference/methods.md").read_text()


def test_duplicate_names_are_rejected():
    with pytest.raises(ValueError, match="method 'ddim' is already registered"):
        register_method("ddim", ALL_METHODS["aidi"].factory, paper="none")


@pytest.mark.slow
def test_name_of_a_method_that_is_not_imported_yet_is_rejected():
    register = "import rnri; rnri.register_method('edict', rnri.ImplicitInverter, paper='none')"
    result = subprocess.run([sys.executable, "-c", register], capture_output=True, text=True, check=False)
    assert "ValueError: method 'edict' is already registered by <class 'rnri.methods.edict.EDICT'>" in result.stderr


def test_registered_method_is_accepted_until_unregistered():
    register_method("toy", ALL_METHODS["ddim"].factory, paper="none")
    try:
        assert "toy" in METHODS
        assert "| `toy` |" in methods_table()
    finally:
        unregister_method("toy")
    assert "toy" not in METHODS


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    ["import rnri, nao, seedselect", "import rnri.validation, rnri.solvers, rnri.methods, rnri.inversion"],
)
def test_importing_the_packages_does_not_import_diffusers(statement):
    check = f"import sys; {statement}; assert not {{'diffusers', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
