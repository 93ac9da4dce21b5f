"""A sweep whose runs are jobs of their own, by submitit's launcher on this machine: the one that Slurm's is like."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commands import command

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")

SETTING = "{_target_:experiments.inversion.jobs.Setting,steps:2,nfe:1}"


def swept(launcher: str, folder: Path) -> subprocess.CompletedProcess:
    return command(
        "-m", f"hydra/launcher={launcher}", "experiment=lam", "lam=0,10", "task.images=1", "task.batch_size=1",
        f"task.settings=[{SETTING}]", "trainer.accelerator=cpu", f"run_dir={folder}",
    )  # fmt: skip


@pytest.mark.slow
def test_each_run_of_a_sweep_is_a_job_with_a_folder_of_its_own(tmp_path):
    finished = swept("submitit_local", tmp_path)
    assert finished.returncode == 0, finished.stderr
    found = {path.parent.name: json.loads(path.read_text())["rows"] for path in tmp_path.glob("*/results.json")}
    assert len(found) == 2 and all("rnri" in [row["method"] for row in rows] for rows in found.values())
    assert {value for name in found for value in ("lam=0,", "lam=10,") if value in name} == {"lam=0,", "lam=10,"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("srun") is not None, reason="there is Slurm")
def test_without_slurm_one_sentence_says_so(tmp_path):
    finished = swept("submitit_slurm", tmp_path)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert finished.stderr.strip().splitlines()[-1].startswith("error: hydra/launcher: Could not detect")
