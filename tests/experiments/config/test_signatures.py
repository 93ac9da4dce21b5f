"""Signatures that are read from source files equal those of the imported classes and functions."""

import re
import subprocess
import sys

import pytest

from experiments.config.signatures import MISSING, imported_signature, source_signature

TARGETS = [
    "experiments.rare_concepts.task.RareConceptsExperiment",  # a dataclass with base classes
    "rnri.ImplicitInverter",  # imported by the package
    "rnri.anderson_inverter",  # a function
    "rnri.LatentDiffusion.from_pretrained",  # a class method
    "seedselect.SeedSelect",
    "nao.centroid_seeds",
    "torch.optim.AdamW",  # a class with __init__
    "lightning.pytorch.Trainer",
]


def without_addresses(hint: object) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", str(hint))


@pytest.mark.parametrize("target", TARGETS)
def test_source_signature_equals_imported_signature(target):
    source, imported = source_signature(target), imported_signature(target)
    assert list(source.parameters) == list(imported.parameters)
    assert source.accepts_any == imported.accepts_any
    for name, parameter in source.parameters.items():
        expected = imported.parameters[name]
        assert parameter.required == expected.required
        assert parameter.default is MISSING or parameter.default == expected.default
        assert parameter.hint is MISSING or without_addresses(parameter.hint) == without_addresses(expected.hint)


def test_project_classes_have_types_and_descriptions():
    parameters = source_signature("seedselect.SeedSelect").parameters
    assert parameters["iterations"].hint is not MISSING
    assert parameters["iterations"].doc


@pytest.mark.parametrize("target", ["no_such_package.Class", "rnri.NoSuchClass", "datetime.timedelta"])
def test_unknown_source_has_no_signature(target):
    assert source_signature(target) is None


def test_validation_does_not_import_pytorch():
    code = (
        "import os, sys; from hydra import compose, initialize_config_dir; import train\n"
        "with initialize_config_dir(os.path.abspath('configs'), version_base='1.3'): config = compose('train')\n"
        "train.check_before_imports(config)\n"
        "assert not {'torch', 'lightning', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
