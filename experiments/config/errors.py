"""One-line messages for errors of Hydra, OmegaConf and the operating system, with the config key or the file name."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from experiments.config.paths import join, resolve
from experiments.config.project import PROJECT
from experiments.config.short_keys import list_error
from rnri.validation import ConfigError

FULL_KEY = re.compile(r"full_key: (\S+)")
SHOW_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether to print tracebacks: True if the environment variable ``HYDRA_FULL_ERROR`` of Hydra is ``1``."""
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EFBIG: "raise the limit of the file size",
    errno.ESTALE: "restore its disk",
    errno.EIO: "restore its disk",
    errno.ENOTCONN: "restore its disk",
}
"""Advice to the user for each error code that the operating system can return when a file is written."""


class ConfigErrors(ValueError):
    """Exception for a config that contains one or more errors. The message has one line per error."""


def nearest(name: str, names: Sequence[str]) -> str:
    """Return a hint for the error message about an unknown name: up to three similar ``names``, or all ``names``."""
    similar = get_close_matches(name, names, n=3, cutoff=0.5)
    if not names:
        return "no keys are allowed here"
    return f"nearest: {', '.join(similar)}" if similar else f"choose from {', '.join(names)}"


def raise_hydra_errors() -> None:
    """Make Hydra raise an exception if the config cannot be composed; by default, Hydra prints an error and exits."""
    os.environ["HYDRA_FULL_ERROR"] = "1"


def exit_with_error(message: str) -> NoReturn:
    """Exit the program with an error message.

    If ``HYDRA_FULL_ERROR=1``, the traceback is printed before the message.
    """
    if SHOW_TRACEBACK:
        traceback.print_exc()
    sys.exit("\n".join(f"error: {line}" for line in message.splitlines()))


def one_line(error: BaseException) -> str:
    """Return the message of ``error`` without line breaks.

    If the operating system cannot write a file, the message includes advice, such as to free some space. Only the
    message of :class:`ConfigErrors` may have several lines, one per error in the config.
    """
    if isinstance(error, OSError) and error.errno in REMEDIES:
        file = f"the file {error.filename}" if error.filename else "a file of run_dir"
        return (
            f"{file} cannot be written ({os.strerror(error.errno)}): {REMEDIES[error.errno]} and run the same command "
            "again; finished results are kept."
        )
    lines = str(error).splitlines() if isinstance(error, ConfigErrors) else [str(error)]
    return "\n".join(" ".join(line.split()) for line in lines)


def instantiation_error(error: InstantiationException, config: DictConfig, part: str) -> str:
    """Return the message of an error that occurred while Hydra instantiated ``config[part]``.

    The message starts with the config key of the object whose constructor failed.
    """
    match = FULL_KEY.search(str(error))
    key = match[1] if match and (match[1] == part or match[1].startswith(f"{part}.")) else part
    path, _ = resolve(config, key)
    cause: BaseException = error
    while isinstance(cause, HydraException) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ConfigError):
        return f"{resolve(config, join(path, cause.key))[0]}: {cause.message}"
    message = one_line(cause)
    return message if message.startswith(path) else f"{path}: {message}"


def composition_error(error: Exception) -> str:
    """Return the message of an error that occurred while Hydra composed the config from the command line."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and option.startswith("submitit"):
            return f'{group}={option} requires the extra slurm: pip install -e ".[slurm]".'
        similar = get_close_matches(option, error.options, n=3, cutoff=0.6)
        hint = f"nearest: {', '.join(similar)}; " if similar else ""
        return f"{group}={option} does not exist; {hint}choose from {', '.join(sorted(error.options))}."
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be parsed: {one_line(error)}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        return _unknown_key(str(cause.full_key), [str(name) for name in cause.parent_node])
    return one_line(error) if cause is error else f"{one_line(error)} {one_line(cause)}"


def group_error(error: ValueError, arguments: Sequence[str]) -> str | None:
    """Return an error message if the command line sets a config group to a value that is not a config name, else None.

    Args:
        error: error that Hydra raised.
        arguments: arguments of the command line.
    """
    if not str(error).startswith("Config group override must be"):
        return None
    parser = OverridesParser.create()
    for argument in arguments:
        group = argument.partition("=")[0].lstrip("+").partition("@")[0]
        folder = PROJECT / "configs" / group
        if not argument.startswith("-") and "=" in argument and folder.is_dir():
            value = parser.parse_override(argument).value()
            if not isinstance(value, str | list):
                names = sorted(path.stem for path in folder.glob("*.yaml"))
                return f"{argument}: must be the name of a config; choose from {', '.join(names)}."
    return one_line(error)


def launcher_error(error: RuntimeError) -> str | None:
    """Return a message if ``error`` was raised by submitit, the library that submits Slurm jobs, else None."""
    file = traceback.extract_tb(error.__traceback__)[-1].filename
    if type(error) is not RuntimeError or "submitit" not in Path(file).parts:
        return None
    return f"hydra/launcher: {one_line(error)} Without Slurm, set hydra/launcher=submitit_local or omit it."


def _unknown_key(key: str, siblings: list[str]) -> str:
    names = [name for name in siblings if not name.startswith("_")]
    choice = nearest(key.rpartition(".")[2], names)
    if "." not in key:
        return f"{key}: unknown key; {choice}."
    return f"{key}: unknown key; {choice}. To pass an argument that the config does not list, write +{key}=..."


@contextmanager
def exit_on_composition_errors(arguments: Sequence[str]) -> Iterator[None]:
    """Context manager that exits with a one-line message if Hydra cannot compose the config or cannot launch a job.

    Ctrl-C also exits with a one-line message.

    Exceptions with other causes are not caught.

    Args:
        arguments: arguments of the command line.
    """
    raise_hydra_errors()
    try:
        yield
    except BrokenPipeError:  # the reader of the output ended, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout when it exits
        sys.exit(1)
    except (HydraException, OmegaConfBaseException, OSError) as error:
        exit_with_error(list_error(arguments) or composition_error(error))
    except ValueError as error:
        if message := group_error(error, arguments):
            exit_with_error(message)
        raise
    except RuntimeError as error:
        if message := launcher_error(error):
            exit_with_error(message)
        raise
    except KeyboardInterrupt:
        exit_with_error("stopped by Ctrl-C: run the same command again; finished results are kept.")
