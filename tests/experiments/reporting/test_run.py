"""``Run`` reads the folder of a finished run."""

import json

import pandas as pd
import pytest
import torch
import yaml

import nao
from experiments.cache.store import SeedStore, UnitStore
from experiments.reporting.run import Run

PROMPT = "a drawing of a camel"


@pytest.fixture
def folder(tmp_path):
    """A run with one arm and one concept, whose two references were inverted by two methods."""
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"name": "rare_concepts"}))
    rows = [{"method": "nao", "bucket": "total", "accuracy": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    pd.DataFrame({"method": ["nao"], "correct": [True]}).to_parquet(tmp_path / "samples.parquet")
    tensors = {
        "images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "seeds": torch.randn(2, 4, 4, 4, generator=generator),
    }
    UnitStore(tmp_path / "units" / "nao", {}).write(f"camel\n{PROMPT}\nhash", tensors, {"t_init": 1.0})
    store = SeedStore(tmp_path / "seeds")
    for method in ({"_class_": "ImplicitInverter", "solver": {"_class_": "FixedPoint"}}, {"_class_": "EDICT"}):
        for image in ("a", "b"):
            key = {"prompt": PROMPT, "image": image, "method": method}
            store.put(key, {"seed": torch.randn(4, 4, 4, generator=generator)})
    store.put({"features": "real"}, {"features": torch.zeros(1)})
    return tmp_path


def test_tables(folder):
    run = Run(folder)
    assert run.config == {"name": "rare_concepts"}
    assert run.rows.accuracy.tolist() == [0.5] and run.samples.correct.tolist() == [True]
    assert run.units[["method", "concept", "prompt"]].values.tolist() == [["nao", "camel", PROMPT]]


def test_images_and_seeds_of_a_concept(folder):
    generated = Run(folder).generated("nao", "camel")
    assert generated.images.shape == (2, 3, 8, 8) and generated.seeds.shape == (2, 4, 4, 4)
    assert generated.prompt == PROMPT and generated.record == {"t_init": 1.0}


def test_reference_seeds_and_centroid(folder):
    run = Run(folder)
    seeds = run.reference_seeds("camel")
    assert {name: tuple(values.shape) for name, values in seeds.items()} == {
        "EDICT": (2, 4, 4, 4),
        "FixedPoint": (2, 4, 4, 4),
    }
    assert torch.equal(run.centroid("camel", "EDICT"), nao.centroid(seeds["EDICT"]).point)


def test_units_of_the_last_settings_are_read(folder):
    store = UnitStore(folder / "units" / "nao", {"steps": 5})
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    store.write(f"fox\n{PROMPT}\nhash", {"images": images, "seeds": torch.zeros(1, 4, 4, 4)}, {})
    assert Run(folder).units.concept.tolist() == ["fox"]


def test_errors_name_the_folder_and_the_choices(folder, tmp_path):
    run = Run(folder)
    with pytest.raises(KeyError, match="no images of concept 'fox' by method 'nao'"):
        run.generated("nao", "fox")
    with pytest.raises(KeyError, match="choose one of EDICT, FixedPoint"):
        run.centroid("camel", "ddim")
    (folder / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match="the run is not finished"):
        Run(folder).rows  # noqa: B018
    with pytest.raises(FileNotFoundError, match=r"because it has no config\.yaml"):
        Run(tmp_path / "nowhere")
