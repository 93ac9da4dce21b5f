"""A sweep whose runs are separate jobs, with submitit's local launcher, which works like its Slurm launcher."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commands import forked

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")

SETTING = "{_target_:experiments.inversion.jobs.Setting,steps:2,nfe:2}"


def run_sweep(launcher: str, folder: Path) -> subprocess.CompletedProcess:
    return forked(
        "-m", f"hydra/launcher={launcher}", "experiment=lam", "lam=0,10", "task.images=1", "task.batch_size=1",
        f"task.settings=[{SETTING}]", "trainer.accelerator=cpu", f"run_dir={folder}",
    )  # fmt: skip


@pytest.mark.slow
def test_each_run_is_a_job_with_a_separate_folder(tmp_path):
    finished = run_sweep("submitit_local", tmp_path)
    assert finished.returncode == 0, finished.stderr
    rows = {path.parent.name: json.loads(path.read_text())["rows"] for path in tmp_path.glob("*/results.json")}
    assert len(rows) == 2 and all("rnri" in [row["method"] for row in entries] for entries in rows.values())
    assert set(rows) == {"lam_0", "lam_10"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("srun") is not None, reason="Slurm is installed")
def test_missing_slurm_is_reported_in_one_line(tmp_path):
    finished = run_sweep("submitit_slurm", tmp_path)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert finished.stderr.strip().splitlines()[-1].startswith("error: hydra/launcher: Could not detect")
