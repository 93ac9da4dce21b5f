"""The GPU benchmark runs on the CPU, and a missing device is reported."""

import sys

import pytest
import torch

from benchmarks import gpu

ARGV = ["gpu", "--device", "cpu", "--models", "emoji_lcm", "--batches", "1", "--dtypes", "float32"]


@pytest.mark.slow
def test_accurate_device_passes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ARGV)
    assert gpu.main() == 0
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[:3] == ["emoji_lcm", "float32", "1"] and line[3] == line[4]


@pytest.mark.slow
def test_inaccurate_device_fails(monkeypatch, capsys):
    results = iter([gpu.RoundTripResult(1e-6, None), gpu.RoundTripResult(1e-2, 1.0)])
    monkeypatch.setattr(gpu, "round_trip", lambda *_: next(results))
    monkeypatch.setattr(sys, "argv", ARGV)
    assert gpu.main() == 1
    assert "error too large" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
def test_missing_gpu_is_reported_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    message = capsys.readouterr().err
    assert "PyTorch finds no device 'cuda'" in message and message.count("\n") == 1
