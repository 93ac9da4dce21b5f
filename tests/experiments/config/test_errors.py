"""Errors in the composition of a config end the program with exit code 1; other errors are not changed."""

import pytest
from hydra.errors import OverrideParseException

from experiments.config.errors import exit_on_composition_errors


@pytest.fixture(autouse=True)
def _restore_environment(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the context manager sets the variable


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["a=["], OverrideParseException("a=[", "no viable\ninput"), "error: a=[ cannot be parsed: no viable input"),
        (
            ["task.methods=[ddim]"],
            OverrideParseException("x", "y"),
            "error: task.methods: must be a mapping from names",
        ),
        (["data=null"], ValueError("Config group override must be a string"), "error: data=null: must be the name of"),
        ([], PermissionError(13, "Permission denied", "runs"), "error: the file runs cannot be written (Permission"),
    ],
)
def test_composition_error_is_the_exit_message(arguments, error, message):
    with pytest.raises(SystemExit) as exit_error, exit_on_composition_errors(arguments):
        raise error
    assert str(exit_error.value.code).startswith(message)  # sys.exit of a string exits with code 1


@pytest.mark.parametrize("error", [ValueError("a"), RuntimeError("b"), TypeError("c"), SystemExit(3)])
def test_other_errors_are_not_changed(error):
    with pytest.raises(type(error)) as caught, exit_on_composition_errors(["seed=1"]):
        raise error
    assert caught.value is error


def test_ctrl_c_exits_with_one_line():
    message = r"^error: stopped by Ctrl-C: run the same command again"
    with pytest.raises(SystemExit, match=message), exit_on_composition_errors(["seed=1"]):
        raise KeyboardInterrupt
