"""The command ``seed-exploration``, which runs ``python train.py`` from any folder."""

from __future__ import annotations

import runpy
import sys

from experiments.config.project import PROJECT


def main() -> None:
    """Run the ``train.py`` of the repository checkout from which this package is installed."""
    script = PROJECT / "train.py"
    if not script.is_file():
        sys.exit("error: the configs and models are missing: run `pip install -e .` in a checkout of the repository.")
    sys.argv[0] = str(script)
    runpy.run_path(str(script), run_name="__main__")
