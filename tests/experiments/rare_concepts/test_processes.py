"""The rare-concepts experiment with several processes, other precisions and other working directories."""

import sys
from argparse import ArgumentParser
from functools import partial
from pathlib import Path

import pytest

from benchmarks import inversion, seedselect
from experiments.editing import make_benchmark
from experiments.runtime.setup import setup
from tests.commands import composed
from tests.experiments.rare_concepts.test_lost_samples import OneBadSeed, totals
from tests.experiments.tiny_configs import NAO, PLAIN, rare_concepts, run_to_end, tiny, trainer

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[3]
MEASURED = ("accuracy", "n", "not_finite", "fid", "kid")


def units(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "run" / "units").rglob("*.safetensors")}


def measured(task) -> dict[str, list]:
    return {name: [row[key] for key in MEASURED] for name, row in totals(task).items()}


def test_idle_process_waits_for_the_other(tmp_path):
    """One unit of a finished run, with a sample that is not finite, is missing; two processes start."""
    lossy = partial(tiny, kind=OneBadSeed)
    alone = measured(run_to_end(rare_concepts(tmp_path, {"plain": PLAIN}, model=lossy)))
    before = units(tmp_path)
    owl = rare_concepts(tmp_path, {"plain": PLAIN}, model=lossy)
    owl.prepare(trainer())
    missing = next(c for c in owl.context.concepts if c.name == "owl")
    gone = [path for path in before if path.stem in owl.context.units("plain").lease_name(missing.key)]
    assert len(gone) == 1
    gone[0].unlink()
    task = run_to_end(
        rare_concepts(tmp_path, {"plain": PLAIN}, model=lossy), devices=2, strategy="ddp_fork", num_nodes=1
    )
    assert measured(task) == alone and alone["plain"][2] == 1
    after = units(tmp_path)
    assert after.keys() == before.keys()
    assert [path for path in before if before[path] != after[path]] == gone


def test_units_of_another_precision_are_computed_again(tmp_path):
    arms = {"nao": NAO}
    run_to_end(rare_concepts(tmp_path, arms))
    first, seeds = units(tmp_path), len(list((tmp_path / "run" / "seeds").rglob("*.safetensors")))
    run_to_end(rare_concepts(tmp_path, arms), precision="bf16-mixed")
    second = units(tmp_path)
    assert len(second) == 2 * len(first) == 6 and first.items() <= second.items()
    assert len(list((tmp_path / "run" / "seeds").rglob("*.safetensors"))) == 2 * seeds > 0
    run_to_end(rare_concepts(tmp_path, arms), precision="bf16-mixed")
    assert units(tmp_path) == second


def test_relative_paths_refer_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = composed("experiment=rare_concepts", "run_dir=mine", "trainer.accelerator=cpu")
    other = composed("experiment=rare_concepts", "run_dir=mine", "data.folder=corpus")
    task, _ = setup(config)
    assert Path(task.run_dir).resolve() == tmp_path / "mine" and len(task.context.concepts) > 3
    with pytest.raises(ValueError, match=r"corpus/?\S* does not exist|corpus has no"):
        setup(other)


@pytest.mark.parametrize("tool", [inversion, seedselect, make_benchmark])
def test_tools_find_the_embedded_models_from_any_directory(tmp_path, monkeypatch, tool):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tool", *(["out"] if tool is make_benchmark else [])])
    arguments = {}
    monkeypatch.setattr(
        ArgumentParser, "parse_args", lambda parser: arguments.update(defaults(parser)) or parser.exit(3)
    )
    with pytest.raises(SystemExit):
        tool.main()
    paths = [arguments[name] for name in ("model", "clip", "corpus") if name in arguments]
    named = [inversion.CONFIGS / "model" / f"{path}.yaml" for path in paths]
    assert paths and all(Path(p).is_dir() or file.is_file() for p, file in zip(paths, named, strict=True))


def defaults(parser: ArgumentParser) -> dict[str, object]:
    return {action.dest: action.default for action in parser._actions}
