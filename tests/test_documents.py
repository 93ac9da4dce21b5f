"""The documents' commands, code, links and names are the project's: the README, ``docs/`` and the assets' pages."""

import argparse
import itertools
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import OmegaConf

from tests.commands import composed

README, DOCS = Path("README.md"), Path("docs")
PAGES = [
    README,
    *(page for page in sorted(DOCS.rglob("*.md")) if "reference" not in page.parts),  # those are made by Sphinx
    *sorted(Path("assets").glob("*/README.md")),
]
COMMENTED = sorted(Path("configs").rglob("*.yaml"))
SLUG_DROPS = re.compile(r"[^\w\- ]")


class Command(NamedTuple):
    page: Path
    words: list[str]  # of the shell, variables before it left out

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def lines(page: Path) -> list[str]:
    """The shell lines of a page, in blocks and inline."""
    blocked = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return blocked + [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def comment_lines(config: Path) -> list[str]:
    """The shell lines in a config's comments; a line that goes on ends in a backslash."""
    comments = [line.removeprefix("#").strip() for line in config.read_text().splitlines() if line.startswith("#")]
    return re.findall(r"python (?:train\.py|-m) [^`\n]+", "\n".join(comments).replace("\\\n", " "))


def commands() -> list[Command]:
    found = [Command(page, _words(line)) for page in PAGES for line in lines(page)]
    found += [Command(config, _words(line)) for config in COMMENTED for line in comment_lines(config)]
    said = [command for command in found if len(command.words) > 1 and "experiment=NAME" not in command.words]
    return list({tuple(command.words): command for command in reversed(said)}.values())  # each where it stands first


def _words(line: str) -> list[str]:
    """The words of the last of the commands that a line joins; none of what is no command."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return []
    for k in reversed(range(len(words))):
        if words[k] == "&&":
            words = words[k + 1 :]
            break
    words = list(itertools.dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=\S*", word), words))
    return ["python", *words[1:]] if words and Path(words[0]).name == "python" else words


COMMANDS = commands()
TRAINING = [command for command in COMMANDS if "train.py" in command.words]  # torchrun and srun start it too
MODULES = [command for command in COMMANDS if command.words[:2] == ["python", "-m"]]


def test_the_readme_is_a_front_door():
    assert len(README.read_text().splitlines()) <= 150


def test_every_kind_of_command_is_found():
    assert len(TRAINING) > 30
    modules = {command.words[2] for command in MODULES}
    named = {"experiments.counting.count_captions", "experiments.reporting.sweep_report"}
    assert {"pytest", "sphinx", "app", *named} <= modules
    pages = {command.page for command in TRAINING}
    assert {README, DOCS / "claims.md", Path("assets/models/README.md"), Path("configs/sweep/lam.yaml")} <= pages


@pytest.mark.parametrize("command", TRAINING, ids=str)
def test_training_command_composes(command):
    words = command.words[command.words.index("train.py") + 1 :]
    if "--cfg" in words:
        words = words[: words.index("--cfg")]
    overrides = OverridesParser.create().parse_overrides([word for word in words if word != "-m"])
    assert "-m" in words or not any(override.is_sweep_override() for override in overrides)
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [override.input_line]
        for override in overrides
    ]
    for run in itertools.product(*choices):
        config = composed(*run)
        for part in (config.task, config.trainer, config.logger):  # what a run reads
            OmegaConf.to_container(part, resolve=True, throw_on_missing=True)


class Parsed(Exception):
    """The arguments of a command were understood."""


@pytest.mark.parametrize("command", [c for c in MODULES if c.words[2] not in ("pytest", "sphinx", "venv")], ids=str)
def test_arguments_of_a_module_are_its_own(command, monkeypatch, capsys):
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self, *arguments):
        parse(self, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    monkeypatch.setattr(sys, "argv", command.words[2:])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # put back afterwards: a command may set it for itself
    monkeypatch.delitem(sys.modules, command.words[2], raising=False)
    try:
        runpy.run_module(command.words[2], run_name="__main__")
    except Parsed:
        return
    except SystemExit as end:
        assert end.code == 0 and "--help" in command.words, capsys.readouterr().err
        return
    raise AssertionError("the module read no arguments")


def test_folders_of_tests_that_commands_name_exist():
    paths = [word for command in MODULES if command.words[2] == "pytest" for word in command.words[3:] if "/" in word]
    assert paths and all(Path(path).exists() for path in paths)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=str)
def test_python_example_runs(page, capsys):
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})
    if page == README:
        assert "torch.Size([1, 4, 16, 16])" in capsys.readouterr().out


def test_ci_uses_the_readme_s_commands():
    steps = Path(".ci/run").read_text().splitlines()
    written = [line for block in blocks(README, "sh") for line in block.splitlines()]
    for sign in ("-m pytest", "-m sphinx"):
        assert next(line for line in written if sign in line) in steps


def test_extras_exist():
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for page in PAGES for name in re.findall(r"-e ['\"]\.\[(\w+)\]", page.read_text())}
    assert {"app", "dev", "docs", "s3", "dask", "slurm"} == named & set(extras) == named


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.M)
    return {SLUG_DROPS.sub("", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_pictures_exist(page):
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page.resolve()
        assert linked.is_file(), f"{page}: {target}"
        assert not anchor or anchor in slugs(linked), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_names_and_paths_in_the_text_exist(page):
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        if re.fullmatch(r"(rnri|nao|seedselect|checked|experiments|benchmarks)(\.\w+)+", code):
            assert get_object(code)
        elif re.fullmatch(r"(configs|assets|docs|notebooks|tests|experiments|benchmarks)/[\w./-]*", code):
            assert Path(code).exists(), f"{page}: {code}"


def test_every_picture_is_shown():
    shown = {Path(target).name for page in PAGES for target in re.findall(r"pictures/[\w.]+", page.read_text())}
    assert {path.name for path in (DOCS / "pictures").iterdir()} == shown


def test_every_experiment_and_method_is_described():
    text = "\n".join(page.read_text() for page in PAGES if DOCS in page.parents)
    for group in ("experiment", "method", "arm", "seed_init", "optimizer", "lr_schedule"):
        for option in (Path("configs") / group).glob("*.yaml"):
            assert re.search(rf"\b{option.stem}\b", text), f"configs/{group}/{option.name}"


def test_every_package_has_a_page_of_the_api():
    listed = (DOCS / "api" / "index.md").read_text().split()
    packages = ["rnri", "nao", "seedselect", "checked", "experiments"]
    nested = [path.parent for name in packages for path in Path(name).rglob("__init__.py")]
    assert {".".join(folder.parts) for folder in nested} <= set(listed)


def test_notebooks_point_to_documents_that_exist():
    for notebook in Path("notebooks").glob("*.ipynb"):
        text = notebook.read_text()
        assert "README" not in text
        for target in re.findall(r"\]\((?!https://|data:)([^)\s]+)\)", text):
            assert (notebook.parent / target).is_file(), f"{notebook}: {target}"
