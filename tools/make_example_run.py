"""Compute the run that the web page shows by default in its tab Compare: ``python -m tools.make_example_run``.

The command runs ``experiment=rare_concepts`` with five concepts. Each arm (compared pipeline) generates one image per
concept. The files that the web page reads are written to ``assets/example_run``. In the stored config, absolute paths
in this repository are replaced by ``${project:PATH}``, so that the config is valid in every clone.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.config.project import PROJECT

CONCEPTS = ("volcano", "steaming bowl", "tram", "basketball", "shortcake")
REMOVED_ARMS = ("seedselect_ddim", "seedselect_ours")
"""Arms (compared pipelines) of ``experiment=rare_concepts`` that are not part of the example run."""
FILES = ("results.json", "samples.parquet", "table.md")
"""Files of the run that are copied, in addition to the config and the images."""
SOURCE = PROJECT / "runs" / "example_run"
TARGET = PROJECT / "assets" / "example_run"


def main() -> None:
    argparse.ArgumentParser(prog="python -m tools.make_example_run", description=__doc__).parse_args()
    overrides = [f"data.concepts=[{','.join(CONCEPTS)}]", "task.samples=1", "run_dir=runs/example_run", "logger=none"]
    overrides += [f"~task.arms.{arm}" for arm in REMOVED_ARMS]
    shutil.rmtree(SOURCE, ignore_errors=True)
    subprocess.run([sys.executable, "train.py", *overrides], cwd=PROJECT, check=True)
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir()
    for name in FILES:
        shutil.copy(SOURCE / name, TARGET)
    shutil.copytree(SOURCE / "units", TARGET / "units")
    write_config(SOURCE / "config.yaml", TARGET / "config.yaml")
    size = sum(path.stat().st_size for path in TARGET.rglob("*") if path.is_file())
    print(f"{TARGET} has {size / 1e3:.0f} kB.")


def write_config(source: Path, target: Path) -> None:
    """Copy a config and replace absolute paths in this repository by ``${project:PATH}``."""
    text = re.sub(rf"{re.escape(str(PROJECT))}/([^\s'\"]+)", r"${project:\1}", source.read_text(encoding="utf-8"))
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
