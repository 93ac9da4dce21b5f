"""Stores: a file is complete or does not exist, and a key never returns the result of another key."""

import resource

import pytest
import torch

from experiments.cache import store
from experiments.cache.atomic import CannotRead, CannotWrite
from experiments.cache.store import SeedStore, UnitStore, content_hash
from experiments.runtime.device import numerics


def test_seed_is_read_under_equal_keys_only(tmp_path):
    store = SeedStore(tmp_path)
    key = {"prompt": "a camel", "guidance": 1.0}
    store.put(key, {"seed": torch.arange(3.0)})
    assert SeedStore(tmp_path).get({"guidance": 1.0, "prompt": "a camel"})["seed"].tolist() == [0, 1, 2]
    assert store.get({"prompt": "a camel", "guidance": 2.0}) is None


def test_damaged_file_counts_as_absent_and_is_rewritten(tmp_path):
    store = SeedStore(tmp_path)
    key = {"prompt": "x"}
    store.put(key, {"seed": torch.ones(4)})
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    assert store.get(key) is None
    store.put(key, {"seed": torch.zeros(4)})
    assert store.get(key)["seed"].sum() == 0


def test_full_disk_raises_and_preserves_old_unit(tmp_path):
    units = UnitStore(tmp_path, {})
    units.write("camel", {"images": torch.zeros(2)}, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(CannotWrite, match=r"\.safetensors cannot be written \(.*File too large"):
            units.write("camel", {"images": torch.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert units.read("camel")[0]["images"].tolist() == [0, 0]
    assert len(list(units.root.iterdir())) == 1


def test_units_of_other_settings_are_separate(tmp_path):
    units, others = UnitStore(tmp_path, {"steps": 20}), UnitStore(tmp_path, {"steps": 10})
    assert not units.done("camel")
    units.write("camel", {"images": torch.zeros(2)}, {"t": 1.5})
    assert units.done("camel") and not others.done("camel")
    assert units.read("camel")[1] == {"t": 1.5}
    with pytest.raises(CannotRead, match=r"\(unit camel\) is missing or damaged: check the disk"):
        others.read("camel")


def test_content_hash_depends_on_pixels():
    a = torch.rand(3, 4, 4)
    assert content_hash(a) == content_hash(a.clone()) != content_hash(a + 1e-3)


def test_content_hash_depends_on_shape():
    a = torch.zeros(3, 4, 2)
    assert content_hash(a) != content_hash(a.view(3, 2, 4))


def test_results_of_version_1_are_recomputed(tmp_path, monkeypatch):
    settings, key = {"steps": 20}, {"prompt": "x"}
    assert store.CACHE_VERSION > 1
    with monkeypatch.context() as old:
        old.setattr(store, "CACHE_VERSION", 1)
        UnitStore(tmp_path / "units", settings).write("camel", {"images": torch.zeros(2)}, {})
        SeedStore(tmp_path / "seeds").put(key, {"seed": torch.ones(2)})
        assert UnitStore(tmp_path / "units", settings).done("camel")
    assert UnitStore(tmp_path / "units", settings).empty()
    assert not UnitStore(tmp_path / "units", settings).done("camel")
    assert SeedStore(tmp_path / "seeds").get(key) is None


def test_truncated_unit_is_not_finished(tmp_path):
    units = UnitStore(tmp_path, {})
    units.write("camel", {"images": torch.zeros(200)}, {})
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert not units.done("camel")
    with pytest.raises(CannotRead, match=r"\(unit camel\) is missing or damaged"):
        units.read("camel")


def test_numerics_depend_on_precision_and_device_type():
    one, cpu = numerics("32-true", torch.device("cpu")), torch.device("cpu")
    assert one == numerics("32-true", torch.device("cpu:0"))
    assert one != numerics("bf16-mixed", cpu) and one != numerics("32-true", torch.device("cuda:1"))
    assert numerics("32-true", torch.device("cuda:0")) == numerics("32-true", torch.device("cuda:1"))


def test_half_written_units_do_not_count(tmp_path):
    units = UnitStore(tmp_path, {})
    units.root.mkdir(parents=True)
    (units.root / ".camel.0123abcd-1-0123abcd.safetensors").write_bytes(b"half")
    assert units.empty() and units.files() == []
    units.write("camel", {"images": torch.zeros(2)}, {})
    assert len(units.files()) == 1 and not units.empty()
