"""Types of the command-line arguments of the benchmarks, which reject invalid values before a measurement starts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

import experiments  # noqa: F401  # the import makes `print` replace characters that the terminal cannot display
from rnri.quiet import quiet_libraries
from rnri.validation import first_line

DTYPES = ("float32", "bfloat16", "float16")
MAX_STEPS = 1000


class Arguments(argparse.ArgumentParser):
    """An argument parser that prints errors in one line, without the usage message, and then exits with status 2."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def integer(minimum: int = 1, maximum: int | None = None) -> Callable[[str], int]:
    """Return a function for ``add_argument(type=...)`` that accepts integers from ``minimum`` to ``maximum``."""
    values = f"an integer >= {minimum}" if maximum is None else f"an integer from {minimum} to {maximum}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(f"must be {values}, got {text!r}.")
        return value

    return parse


steps = integer(1, MAX_STEPS)
"""Function for ``add_argument(type=...)`` that accepts numbers of sampling steps."""


def guidance(text: str) -> float:
    """Convert ``text`` to a guidance scale, a finite number >= 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number >= 1 (1 disables guidance), got {text!r}.")
    return value


def device(text: str) -> str:
    """Return ``text`` if PyTorch can use the device ``text``; otherwise raise an ``ArgumentTypeError``."""
    try:
        kind = torch.device(text).type
        index = torch.device(text).index or 0
    except RuntimeError:
        kind = index = None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    available = [name for name, count in counts.items() if count]
    if kind not in counts:
        raise argparse.ArgumentTypeError(
            f"must be cpu, mps, cuda, or cuda with the index of a GPU (such as cuda:1), got {text!r}."
        )
    if index >= counts[kind]:
        raise argparse.ArgumentTypeError(f"PyTorch finds no device {text!r}: choose one of {', '.join(available)}.")
    return text


def output_file(text: str) -> Path:
    """Convert ``text`` to the path of a file in a folder that exists."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a folder that exists, got {text!r}.")
    return path


def default_device() -> str:
    """Return ``cuda`` if PyTorch finds a CUDA GPU, otherwise ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run the function ``main`` of a command and exit. Print a ValueError or an OSError of ``main`` in one line."""
    quiet_libraries()
    try:
        status = main()
    except (ValueError, OSError) as error:
        raise SystemExit(first_line(error)) from None
    raise SystemExit(status)
