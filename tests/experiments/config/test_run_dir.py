"""The jobs of a sweep have a folder each, whatever is swept."""

import re

import pytest

from experiments.config.run_dir import LONGEST_NAME, check_writable, job_folder, sweep_jobs


def folders(*overrides: str) -> list[str]:
    """Of all jobs of a sweep."""
    jobs = sweep_jobs(["-m", *overrides])
    return [job_folder(job, jobs, number) for number, job in enumerate(jobs)]


def test_a_folder_is_named_as_one_types_the_job():
    assert folders("experiment=lam", "run_dir=R", "lam=0,0.5") == ["lam=0", "lam=0.5"]
    assert folders("select.optimizer.lr=0.02", "data.buckets=[tail]", "seed=1,2") == [
        "data.buckets=[tail],seed=1,select.optimizer.lr=0.02",
        "data.buckets=[tail],seed=2,select.optimizer.lr=0.02",
    ]


def test_what_takes_a_job_away_names_it_too():
    assert folders("~task.arms.plain", "seed=1,2")[0] == "seed=1,~task.arms.plain=null"


@pytest.mark.parametrize(
    "overrides",
    [
        ["lam=0,10", "model.path=../x/emoji"],
        ["model.path=../a,../b", "lam=0"],
        ["model.path='..','../..','.','/','///','~','.hidden'"],
        ["model.path=a/b,a_b,a:b,'a*b','a?b'"],
        ["model.path='a b','a\\tb'"],
        ["data.source.prompt='a \"{name}\"','a <{name}>','a |{name}|'"],
        ["experiment=interpolation,centroids", "run_dir=R"],
        ["logger=csv,none"],
        ["logger.wandb.offline=true,false", "logger=wandb"],
        ["name='',' ','  '"],
        ["name='',null"],
        ["seed=0,0,0"],
        ["lam=-1,+1,1"],
        ["lam=1,1.0,1e0"],
        [f"model.path={'x' * 300}a,{'x' * 300}b"],
        [f"model.path='{'é' * 150}a','{'é' * 150}b'"],
        ["model.path='jalapen\u0303o','jalape\u00f1o'"],
        ["data.concepts=[camel],[camel,padlock]"],
        ["method@task.arms.seedselect_rnri.inverter=accelerated,ddim"],
        ["+arm@task.arms.x=nao,plain"],
        ["hydra.verbose=true", "lam=0,1"],
    ],
)
def test_any_two_jobs_have_folders_of_their_own_directly_below_the_sweeps(overrides):
    found = folders(*overrides)
    assert len(set(found)) == len(found) > 1
    for name in found:
        assert name and not re.search(r"[/\\\0:*?\"<>|\n\t]", name) and not name.startswith((".", " "))
        assert len(name.encode()) <= LONGEST_NAME


def test_a_sweep_again_or_a_longer_one_finds_its_folders():
    first, again = (folders("lam=0,10", "model.path=../x/emoji") for _ in range(2))
    longer = folders("lam=0,5,10,20", "model.path=../x/emoji")
    assert first == again and set(first) < set(longer)


def test_jobs_that_only_hydra_knows_of_are_told_apart():
    jobs = sweep_jobs(["--pipe", "/tmp/x", "worker"])
    assert jobs == []
    assert job_folder(["experiment=lam", "lam=0"], jobs, 0) != job_folder(["experiment=lam", "lam=1"], jobs, 1)


def test_a_job_alone_has_a_folder_too():
    (name,) = folders("run_dir=R")
    assert name


@pytest.mark.parametrize("below", ["", "/x", "/x/y"])
def test_a_run_cannot_write_into_a_file(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"run_dir=\S+/file\S*: .*file is a file"):
        check_writable(f"{tmp_path}/file{below}")


def test_a_folder_without_leave_to_write_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ValueError, match=rf"run_dir={tmp_path}/x/y: {tmp_path} cannot be written to"):
        check_writable(f"{tmp_path}/x/y")


def test_folders_still_to_be_made_can_be(tmp_path):
    check_writable(f"{tmp_path}/x/y")
    check_writable("x/y")
