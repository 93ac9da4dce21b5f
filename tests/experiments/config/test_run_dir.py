"""Each job of a sweep has its own folder, for any overrides."""

import re

import pytest

from experiments.config.run_dir import MAX_NAME_BYTES, check_writable, job_folder, sweep_jobs, values_name


def folders(*overrides: str) -> list[str]:
    """Return the folders of all jobs of a sweep."""
    jobs = sweep_jobs(["-m", *overrides])
    return [job_folder(job, jobs, number) for number, job in enumerate(jobs)]


def test_folder_name_consists_of_the_values_that_differ():
    assert folders("experiment=lam", "run_dir=R", "lam=0,0.5") == ["lam_0", "lam_0.5"]
    fixed = ["task.batch_size=4", "data.buckets=[tail]", "~task.arms.plain", "task.settings.0.steps=10"]
    assert folders(*fixed, "select.optimizer.lr=0.02,0.1", "seed=1") == ["lr_0.02", "lr_0.1"]
    assert folders("lam=0,1", "seed=1,2") == ["lam_0-seed_1", "lam_0-seed_2", "lam_1-seed_1", "lam_1-seed_2"]
    assert folders("methods=[ddim],[ddim,aidi]") == ["methods_ddim", "methods_ddim_aidi"]


def test_keys_with_the_same_last_part_are_not_shortened():
    assert folders("task.arms.a.guidance=1,2", "task.arms.b.guidance=3")[0] == "guidance_1"
    assert folders("a.lr=1,2", "b.lr=3,4")[0] == "a.lr_1-b.lr_3"


def test_name_of_values_needs_no_quotes():
    assert values_name({"lam": 0.1, "select.optimizer.lr": -2, "data.source.prompt": "a 'cat' = {x}"}) == (
        "prompt_a_cat_x-lam_0.1-lr_-2"
    )


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
def test_folder_names_are_unique_and_valid(overrides):
    names = folders(*overrides)
    assert len(set(names)) == len(names) > 1
    for name in names:
        assert re.fullmatch(r"[\w.+-]+", name) and not name.startswith(".")
        assert len(name.encode()) <= MAX_NAME_BYTES


def test_repeated_or_longer_sweep_reuses_its_folders():
    first, again = (folders("lam=0,10", "model.path=../x/emoji") for _ in range(2))
    longer = folders("lam=0,5,10,20", "model.path=../x/emoji")
    assert first == again and set(first) < set(longer)


def test_names_are_unique_without_the_sweeps_command_line():
    jobs = sweep_jobs(["--pipe", "/tmp/x", "worker"])
    assert jobs == []
    assert job_folder(["experiment=lam", "lam=0"], jobs, 0) != job_folder(["experiment=lam", "lam=1"], jobs, 1)


def test_single_job_has_a_folder_name():
    (name,) = folders("run_dir=R")
    assert name


@pytest.mark.parametrize("below", ["", "/x", "/x/y"])
def test_run_dir_below_a_file_raises(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"run_dir=\S+/file\S*: .*file is a file"):
        check_writable(f"{tmp_path}/file{below}")


def test_run_dir_that_is_not_writable_raises(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # chmod does not restrict root
    with pytest.raises(ValueError, match=rf"run_dir={tmp_path}/x/y: {tmp_path} is not writable"):
        check_writable(f"{tmp_path}/x/y")


def test_missing_run_dir_is_accepted(tmp_path):
    check_writable(f"{tmp_path}/x/y")
    check_writable("x/y")
