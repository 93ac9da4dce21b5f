"""Hydra's and OmegaConf's errors as one sentence that names the key as one types it."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from experiments.config.paths import join, locate
from rnri.validation import ConfigError

FULL_KEY = re.compile(r"full_key: (\S+)")


FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether the user asked for the whole error, in Hydra's own way."""


def let_hydra_raise() -> None:
    """Makes Hydra raise what does not compose, instead of printing it in its own way and leaving."""
    os.environ["HYDRA_FULL_ERROR"] = "1"


def refuse(sentence: str) -> NoReturn:
    """Ends the command with what is wrong, and with Python's whole account of it where the user wants that."""
    if FULL_ERROR:
        traceback.print_exc()
    sys.exit(f"error: {sentence}")


REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EFBIG: "have the limit of a file's size lifted",
    errno.ESTALE: "bring its disk back",
    errno.EIO: "bring its disk back",
    errno.ENOTCONN: "bring its disk back",
}
"""What helps where a library that knows nothing of the run could not write a file."""


def explain(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in REMEDIES:
        file = f"the file {error.filename}" if error.filename else "a file of run_dir"
        return (
            f"{file} cannot be used ({os.strerror(error.errno)}): {REMEDIES[error.errno]}, and run the same command "
            "again; finished units are kept."
        )
    return " ".join(str(error).split())


def failed_call(error: InstantiationException, config: DictConfig, part: str) -> str:
    """What a class or function of ``config`` below ``part`` said against its arguments, with the key."""
    found = FULL_KEY.search(str(error))
    key = found[1] if found and (found[1] == part or found[1].startswith(f"{part}.")) else part
    place, _ = locate(config, key)
    cause: BaseException = error
    while isinstance(cause, HydraException) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ConfigError):
        return f"{locate(config, join(place, cause.key))[0]}: {cause.message}"
    said = explain(cause)
    return said if said.startswith(place) else f"{place}: {said}"


def failed_composition(error: Exception) -> str:
    """Why the command line and the configs do not go together."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and option.startswith("submitit"):
            return f'{group}={option} needs the extra slurm: pip install -e ".[slurm]".'
        return f"{group}={option} is unknown: choose from {', '.join(sorted(error.options))}."
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: {explain(error)}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        return _no_such_key(str(cause.full_key), [str(name) for name in cause.parent_node])
    return explain(error) if cause is error else f"{explain(error)} {explain(cause)}"


def failed_launcher(error: RuntimeError) -> str | None:
    """What submitit says where it cannot start jobs; None for an error that is not its own."""
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    if type(error) is not RuntimeError or "submitit" not in Path(place).parts:
        return None
    return f"hydra/launcher: {explain(error)} On one machine: hydra/launcher=submitit_local, or none."


def _no_such_key(key: str, siblings: list[str]) -> str:
    known = [name for name in siblings if not name.startswith("_")]
    near = get_close_matches(key.rpartition(".")[2], known, n=3, cutoff=0.5) or known
    return f"there is no key {key}: choose from {', '.join(near)}; +{key}=... gives what its class takes besides."
