"""Run an experiment: ``python train.py experiment=NAME [key=value ...]``. The default experiment is rare_concepts."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.config.errors import exit_on_composition_errors, exit_with_error, one_line
from experiments.config.run_dir import fix_time, remember_sweep
from experiments.config.short_keys import apply_short_keys
from experiments.config.unused_keys import check_for_unused_keys
from experiments.config.validate import check_before_imports, interpolation_error


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> float | None:
    """Validate the config, import PyTorch, and run the experiment.

    Returns:
        The value that a hyperparameter sweep optimizes, or None if the experiment has no such value.
    """
    fix_time()
    try:
        check_for_unused_keys(config)
        apply_short_keys(config)
        check_before_imports(config)
    except (ValueError, OmegaConfBaseException, RecursionError) as error:
        exit_with_error(interpolation_error(config) or one_line(error))
    from experiments.runtime.setup import run

    return run(config)


def command() -> None:
    """Run the experiment of the command line, or print the help if the command line contains ``--help`` or ``-h``.

    If Hydra cannot compose the config, the program exits with a one-line error message.
    """
    with exit_on_composition_errors(sys.argv[1:]):
        if "--help" in sys.argv or "-h" in sys.argv:
            from experiments.config.help import print_help

            print_help(sys.argv[1:])
        else:
            remember_sweep(sys.argv[1:])
            main()


if __name__ == "__main__":
    command()
