"""Cache keys do not depend on module paths, and different settings have different keys."""

import ast
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from experiments.cache.key import PROJECT, fingerprint_config
from nao import centroid_seeds, slerp
from rnri import FixedPoint, ImplicitInverter
from seedselect import SeedSelect


@dataclass
class Local:
    x: float = 1.0

    def double(self) -> float:
        return 2 * self.x


def test_project_classes_are_described_without_module():
    description = fingerprint_config(ImplicitInverter(FixedPoint(3)))
    assert description["_class_"] == "ImplicitInverter"
    assert description["solver"]["_class_"] == "FixedPoint"
    assert fingerprint_config(slerp) == {"_function_": "slerp"}


def test_third_party_classes_keep_their_module():
    assert fingerprint_config(torch.optim.AdamW) == {"_function_": "torch.optim.adamw.AdamW"}
    assert fingerprint_config(Local())["_class_"].endswith("test_key.Local")


def test_cache_name_overrides_the_class_name(monkeypatch):
    monkeypatch.setattr(FixedPoint, "cache_name", "PicardIteration", raising=False)
    assert fingerprint_config(FixedPoint(3))["_class_"] == "PicardIteration"


def test_partial_functions_and_methods_include_their_arguments():
    assert fingerprint_config(partial(centroid_seeds, num_points=3)) == {
        "_partial_": {"_function_": "centroid_seeds"},
        "args": [],
        "keywords": {"num_points": 3},
    }
    method = fingerprint_config(Local(3.0).double)
    assert method["_method_"] == "double" and method["of"]["x"] == 3.0


def test_different_settings_have_different_keys():
    assert fingerprint_config(FixedPoint(3)) == fingerprint_config(FixedPoint(3))
    assert fingerprint_config(FixedPoint(3)) != fingerprint_config(FixedPoint(4))
    assert fingerprint_config({"a": (1, None, True)}) == {"a": [1, None, True]}


def test_added_field_is_part_of_the_key_only_if_it_is_set():
    default, several_views = (fingerprint_config(SeedSelect(views=views)) for views in (1, 4))
    assert "views" not in default
    assert several_views == default | {"views": 4}


def test_objects_without_visible_settings_are_rejected():
    for value in (lambda x: x, object(), torch.zeros(1)):
        with pytest.raises(TypeError, match="cannot be part of a cache key"):
            fingerprint_config(value)


def public_definitions(path: Path) -> list[str]:
    """Return the public classes and functions that a module defines."""
    nodes = ast.parse(path.read_text()).body
    return [n.name for n in nodes if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")]


def test_class_names_are_unique_in_the_project():
    """A class is identified by its bare name in cache keys."""
    counts = Counter(
        name
        for package in PROJECT
        for path in Path(package).rglob("*.py")
        for name in public_definitions(path)
        if name[0].isupper()
    )
    assert [name for name, count in counts.items() if count > 1] == []


def test_function_names_are_unique_in_nao_and_seedselect():
    paths = [path for package in ("nao", "seedselect") for path in Path(package).rglob("*.py")]
    counts = Counter(name for path in paths for name in public_definitions(path))
    assert [name for name, count in counts.items() if count > 1] == []
