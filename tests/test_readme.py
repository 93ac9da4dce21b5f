"""The README's commands and code are what the project does."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

README = Path("README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_example_runs(capsys):
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert "torch.Size([1, 4, 16, 16])" in capsys.readouterr().out


def test_ci_uses_the_test_command():
    command = next(line for block in blocks("sh") for line in block.splitlines() if "-m pytest" in line)
    assert command in Path(".ci/run").read_text().splitlines()


COMMANDS = [
    line
    for block in blocks("sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python train.py")
]
COMMANDS += [" ".join(command.split()) for command in re.findall(r"`(python train\.py [^`]+)`", README)]


@pytest.mark.parametrize("line", COMMANDS)
def test_training_command_composes(line):
    overrides = shlex.split(line, comments=True)[2:]
    if "-m" in overrides:  # a sweep: its first run
        overrides = [word.split(",")[0] for word in overrides if word != "-m"]
    with initialize_config_dir(str(Path("configs").resolve()), version_base="1.3"):
        assert compose("train", overrides).name


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README):
        assert target.startswith("https://") or Path(target).exists(), target
