"""An invalid option of a benchmark is reported in one line, before a measurement starts."""

import importlib
import sys

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import arguments

BAD_OPTIONS = {
    "count_captions": (
        "--captions 0", "--captions many", "--file nothing.parquet", "--column other --file FILE", "--repeats 0",
        "--file EMPTY", "--only nothing", "--nothing",
    ),
    "gpu": ("--device quantum", "--device cuda:99", "--models nothing", "--batches 0", "--dtypes float8"),
    "inversion": (
        "--methods nothing", "--methods flow_edit", "--batches 0", "--steps 0", "--steps 1001", "--guidance 0.5",
        "--guidance nan", "--model nothing", "--model emoji_lcm --steps 51", "--device quantum", "--dtype float8",
    ),
    "nao": (
        "--seeds 1", "--sizes 10", "--sizes 4", "--batches 0", "--num-points 0", "--repeats 0", "--iterations -1",
    ),
    "peers": ("--pairs nothing", "--batches 0", "--steps 0", "--repeats 0", "--json nothing/here/peers.json"),
    "seedselect": (
        "--modes nothing", "--modes last0", "--batches 0", "--steps -1", "--guidance inf", "--iterations 0",
        "--model nothing", "--clip nothing", "--device quantum", "--dtype int8",
    ),
    "strong_guidance": (
        "--candidates nothing", "--drawings 0", "--drawings 1000000", "--steps 0", "--guidance 0", "--device quantum",
    ),
}  # fmt: skip
CASES = [(name, options) for name, group in BAD_OPTIONS.items() for options in group]


@pytest.fixture
def offline(monkeypatch):
    """Look up Hub ids in the local cache only: the answer does not depend on the network, and nothing is retried."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def files(tmp_path):
    pq.write_table(pa.table({"caption": ["a camel"]}), tmp_path / "FILE")
    pq.write_table(pa.table({"caption": pa.array([None], pa.string())}), tmp_path / "EMPTY")
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: value)
def test_bad_option_is_one_line(name, options, files, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # an unreachable Hub is retried for 23 s
    command = importlib.import_module(f"benchmarks.{name}")
    argv = [str(files / word) if word in ("FILE", "EMPTY") else word for word in options.split()]
    monkeypatch.setattr(sys, "argv", [name, *argv])
    with pytest.raises(SystemExit) as stopped:
        arguments.run(command.main)
    output = capsys.readouterr()
    message = stopped.value.code if isinstance(stopped.value.code, str) else output.err
    assert stopped.value.code == 2 or message is stopped.value.code
    assert len(message.strip().splitlines()) == 1 and "Traceback" not in message
    assert output.out == "" or output.out.startswith("Concepts:")  # the data of strong_guidance
    value = options.split()[-1]
    assert value.lstrip("-") in message or (value in ("FILE", "EMPTY", "0", "-1", "inf") and "must be" in message)


def test_exit_status_is_that_of_the_command():
    with pytest.raises(SystemExit) as stopped:
        arguments.run(lambda: 1)
    assert stopped.value.code == 1
