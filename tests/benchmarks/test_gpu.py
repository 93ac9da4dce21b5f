"""The check of a device, which is the CPU here; and what it says where there is none."""

import sys

import pytest
import torch

from benchmarks import gpu

HERE = ["gpu", "--device", "cpu", "--models", "emoji_lcm", "--batches", "1", "--dtypes", "float32"]


def test_a_device_that_computes_as_the_cpu_does_passes(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["gpu", "--device", "cpu", "--models", "emoji_lcm", "--batches", "1", "--dtypes", "float32"]
    )
    assert gpu.main() == 0
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[:3] == ["emoji_lcm", "float32", "1"] and line[3] == line[4]


def test_a_device_that_is_off_is_said(monkeypatch, capsys):
    found = iter([gpu.Found(1e-6, None), gpu.Found(1e-2, 1.0)])
    monkeypatch.setattr(gpu, "round_trip", lambda *_: next(found))
    monkeypatch.setattr(
        sys, "argv", ["gpu", "--device", "cpu", "--models", "emoji_lcm", "--batches", "1", "--dtypes", "float32"]
    )
    assert gpu.main() == 1
    assert "the device is off" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_one_sentence_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("this machine has no cuda device") and said.count("\n") == 1
