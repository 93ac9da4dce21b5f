"""``tools.inspect_wandb`` prints the content of a W&B file with known records."""

import subprocess
import sys

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from tools.inspect_wandb import CHUNK_HEADER, FULL, _metric_lines, main, records, summarize


@pytest.fixture
def path(tmp_path):
    """A ``.wandb`` file of a finished run with one metric."""
    run = Record()
    run.run.run_id = "abc"
    run.run.display_name = "first"
    history = Record()
    item = history.history.item.add()
    item.key = "psnr"
    item.value_json = "20.5"
    end = Record()
    end.exit.exit_code = 0
    messages = [record.SerializeToString() for record in (run, history, end)]
    chunks = [CHUNK_HEADER.pack(0, len(message), FULL) + message for message in messages]
    file = tmp_path / "wandb" / "offline-run-abc" / "run-abc.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(b":W&B\0\0\0" + b"".join(chunks))
    return file


def test_summary_has_state_and_metrics(path):
    lines = summarize(path).splitlines()
    assert lines[0].startswith("run abc: first")
    assert "state: finished" in lines and "  psnr = 20.5" in lines


def test_incomplete_last_record_is_skipped(path):
    path.write_bytes(path.read_bytes()[:-1])
    assert len(list(records(path))) == 2


def test_other_files_are_rejected(tmp_path):
    (tmp_path / "x.wandb").write_bytes(b"other")
    with pytest.raises(ValueError, match="is not a W&B file"):
        list(records(tmp_path / "x.wandb"))


def test_damaged_record_is_rejected(path):
    path.write_bytes(path.read_bytes() + CHUNK_HEADER.pack(0, 3, FULL) + b"\xff\xff\xff")
    with pytest.raises(ValueError, match="is damaged: copy the file again"):
        list(records(path))


def test_folder_with_the_name_of_a_run_file_is_passed_over(path, monkeypatch, capsys):
    (path.parent / "run-xyz.wandb").mkdir()
    monkeypatch.setattr(sys, "argv", ["inspect_wandb", str(path.parents[2])])
    main()
    assert capsys.readouterr().out.count("state: ") == 1
    path.unlink()
    with pytest.raises(SystemExit, match="contains no W&B run"):
        main()


def test_last_value_of_a_metric_may_be_a_text():
    assert list(_metric_lines({"name": ["a", "b"], "psnr": [1.5]})) == ["  name = b (2 values)", "  psnr = 1.5"]


def test_closed_pipe_gives_no_traceback(path):
    command = [sys.executable, "-m", "tools.inspect_wandb", str(path.parents[2])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # as `head` does once it has its lines
    process.stdout = None
    _, errors = process.communicate(timeout=600)
    assert errors == ""
