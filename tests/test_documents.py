"""Commands, code, links and names in the README, ``docs/`` and the assets' pages exist and work."""

import argparse
import ast
import importlib
import inspect
import itertools
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import typer.testing
from diffusers import EulerAncestralDiscreteScheduler
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import OmegaConf
from PIL import Image

from experiments.config.unused_keys import unused_key_errors
from tests.commands import composed
from tests.pipelines import tiny_stable_diffusion_xl

README, DOCS = Path("README.md"), Path("docs")
PAGES = [
    README,
    Path("CONTRIBUTING.md"),
    *(page for page in sorted(DOCS.rglob("*.md")) if "generated" not in page.parts),  # Sphinx writes these
    *sorted(Path("assets").glob("*/README.md")),
]
COMMENTED = sorted(Path("configs").rglob("*.yaml"))
SLUG_DROPS = re.compile(r"[^\w\- ]")


class Command(NamedTuple):
    page: Path
    words: list[str]  # of the shell command, without environment variables before it

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def lines(page: Path) -> list[str]:
    """The shell lines of a page, in blocks and inline."""
    blocked = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return blocked + [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def comment_lines(config: Path) -> list[str]:
    """Shell lines in a config's comments; a continued line ends in a backslash."""
    comments = [line.removeprefix("#").strip() for line in config.read_text().splitlines() if line.startswith("#")]
    return re.findall(r"python (?:train\.py|-m) [^`\n]+", "\n".join(comments).replace("\\\n", " "))


def commands() -> list[Command]:
    """Commands of all pages and configs, each with the page that has it first."""
    listed = [Command(page, _words(line)) for page in PAGES for line in lines(page)]
    listed += [Command(config, _words(line)) for config in COMMENTED for line in comment_lines(config)]
    complete = [command for command in listed if len(command.words) > 1 and not _is_pattern(command)]
    return list({tuple(command.words): command for command in reversed(complete)}.values())


def _is_pattern(command: Command) -> bool:
    """Whether a command contains a placeholder such as ``experiment=NAME`` or ``experiment=X``."""
    return any(re.fullmatch(r"experiment=[A-Z]+", word) for word in command.words)


def _words(line: str) -> list[str]:
    """Words of the last command of a line; an empty list if it is not a Python command."""
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


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 120


def tables(page: Path) -> list[list[str]]:
    """The lines of each table of a page."""
    return [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", prose(page), flags=re.M)]


def test_tables_are_narrow():
    for page in PAGES:
        results = DOCS / "results" in page.parents
        columns = 5 if page == README else 7 if results else 8
        for table in tables(page):
            assert table[1].count("|") - 1 <= columns, f"{page}: {table[0]}"
            assert not results or max(map(len, table)) <= 120, f"{page}: {max(table, key=len)}"


def test_pages_of_results_are_short():
    words = {page: len(page.read_text().split()) for page in (DOCS / "results").glob("*.md")}
    assert max(words.values()) <= 2700, words


def test_commands_of_every_kind_are_collected():
    assert len(TRAINING) > 30
    modules = {command.words[2] for command in MODULES}
    named = {"experiments.counting.count_captions", "experiments.reporting.sweep_report"}
    assert {"pytest", "sphinx", "experiments.app", *named} <= modules
    pages = {command.page for command in TRAINING}
    assert {
        README,
        DOCS / "results" / "claims.md",
        Path("assets/models/README.md"),
        Path("configs/sweep/lam.yaml"),
    } <= pages


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINING, ids=str)
def test_training_command_composes(command):
    words = command.words[command.words.index("train.py") + 1 :]
    words = list(itertools.takewhile(lambda word: word not in ("--cfg", "--help", "-sc"), words))
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
        for part in (config.task, config.trainer, config.logger):  # the parts that a run instantiates
            OmegaConf.to_container(part, resolve=True, throw_on_missing=True)
        assert unused_key_errors(config, run, [path.name for path in Path("configs").iterdir()]) == []


NO_ARGUMENTS_OF_OURS = ("pytest", "sphinx", "venv", "rnri")
"""Modules of other projects, and a module whose arguments typer parses."""


class Parsed(Exception):
    """The arguments of a command were parsed."""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")  # other tests import modules
@pytest.mark.parametrize("command", [c for c in MODULES if c.words[2] not in NO_ARGUMENTS_OF_OURS], ids=str)
def test_module_parses_its_arguments(command, monkeypatch, capsys):
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self, *arguments):
        parse(self, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    monkeypatch.setattr(sys, "argv", command.words[2:])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # restored afterwards: a command may set it
    try:
        runpy.run_module(command.words[2], run_name="__main__")
    except Parsed:
        return
    except SystemExit as end:
        assert end.code == 0 and "--help" in command.words, capsys.readouterr().err
        return
    raise AssertionError("the module parsed no arguments")


@pytest.mark.parametrize("command", [c for c in MODULES if c.words[2] == "rnri" and len(c.words) > 3], ids=str)
def test_arguments_of_rnri_are_valid(command, monkeypatch):
    main = importlib.import_module("rnri.cli")
    calls = []
    monkeypatch.setattr(main, "run", lambda *arguments: calls.append(arguments))
    result = typer.testing.CliRunner().invoke(main.app, command.words[3:])
    assert result.exit_code == 0, result.output
    assert calls or "--help" in command.words


def test_test_folders_in_commands_exist():
    paths = [word for command in MODULES if command.words[2] == "pytest" for word in command.words[3:] if "/" in word]
    assert paths and all(Path(path).exists() for path in paths)


HOW_TO = [page for page in PAGES if page.name.startswith("add_")]
"""Pages whose code is executed by a test of their own."""


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page not in HOW_TO], ids=str)
def test_python_example_runs(page, capsys):
    """The code of a page runs, and it prints the PSNR that its comments state."""
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})
        printed = capsys.readouterr().out
        for quality in re.findall(r"# ([\d.]+ of [\d.]+ dB, .*)", block):
            assert quality in printed


@pytest.mark.slow
def test_code_for_sdxl_turbo_runs_with_a_tiny_checkpoint(tmp_path, monkeypatch, capsys):
    """The code runs without changes, except for the checkpoint and the device."""
    (code,) = [block for block in blocks(DOCS / "start" / "getting_started.md", "py") if "sdxl-turbo" in block]
    monkeypatch.chdir(tmp_path)
    pipe = tiny_stable_diffusion_xl(timestep_spacing="trailing")
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)  # that of SDXL-turbo
    pipe.to(dtype=torch.float16).save_pretrained("checkpoint", variant="fp16")
    Image.linear_gradient("L").convert("RGB").save("cat.jpg")
    for name, replacement in {"stabilityai/sdxl-turbo": "checkpoint", '"cuda"': '"cpu"'}.items():
        assert code.count(name) == 1
        code = code.replace(name, replacement)
    with pytest.warns(UserWarning, match="with its scheduler EulerAncestralDiscreteScheduler does not regenerate"):
        exec(compile(code, "getting_started.md", "exec"), {})
    assert "1 image 16x16, 4 steps, guidance 1" in capsys.readouterr().out
    assert Image.open("dog.png").size == (16, 16)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "py")], ids=str)
def test_names_in_code_that_needs_a_gpu_exist(page):
    """Code in blocks with the language ``py`` is not executed, but its imports and its calls of rnri are checked."""
    for block in blocks(page, "py"):
        tree = ast.parse(block)
        names = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names |= {alias.name: get_object(f"{node.module}.{alias.name}") for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name: importlib.import_module(alias.name) for alias in node.names}
        for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
            head, *attributes = ast.unparse(call.func).split(".")
            if head in ("rnri", "edit"):
                member = names[head]
                for attribute in attributes:
                    member = getattr(member, attribute)
                inspect.signature(member).bind(*call.args, **{word.arg: word.value for word in call.keywords})


def templates() -> str:
    """All string literals of the packages, one per line, with ``…`` in place of formatted values."""
    texts = []
    for package in ("rnri", "nao", "seedselect", "experiments"):
        for path in Path(package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    texts.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def test_messages_in_troubleshooting_exist():
    page = DOCS / "start" / "troubleshooting.md"
    messages = re.findall(r"^- `(.+)`$", page.read_text(), flags=re.M)
    literals = templates()
    assert len(messages) > 15
    assert [message for message in messages if message not in literals] == []


@pytest.mark.parametrize("page", HOW_TO, ids=str)
def test_how_to_page_has_a_test(page):
    assert Path("tests", f"test_{page.stem}.py").is_file()


def test_ci_runs_the_commands_of_the_readme():
    steps = Path(".ci/run").read_text().splitlines()
    documented = [line for block in blocks(README, "sh") for line in block.splitlines()]
    for command in ("-m pytest", "-m sphinx"):
        assert next(line for line in documented if command in line) in steps


def test_extras_exist():
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for page in PAGES for name in re.findall(r"-e ['\"]\.\[(\w+)\]", page.read_text())}
    assert {"app", "dev", "docs", "experiments", "s3", "dask", "slurm"} == named & set(extras) == named


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MyST generate them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.M)
    return {SLUG_DROPS.sub("", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_images_exist(page):
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page.resolve()
        assert linked.is_file(), f"{page}: {target}"
        assert not anchor or anchor in slugs(linked), f"{page}: {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in HOW_TO], ids=str)  # those name new files
def test_names_and_paths_in_text_exist(page):
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        if re.fullmatch(r"(rnri|nao|seedselect|experiments|benchmarks|tools)(\.\w+)+", code):
            assert get_object(code)
        elif re.fullmatch(r"(configs|assets|docs|notebooks|tests|experiments|benchmarks|tools|rnri)/[\w./-]*", code):
            assert Path(code).exists(), f"{page}: {code}"


def test_every_figure_is_used():
    used = {Path(target).name for page in PAGES for target in re.findall(r"figures/[\w.]+", page.read_text())}
    assert {path.name for path in (DOCS / "figures").iterdir()} == used


def test_every_data_file_is_linked():
    linked = {Path(target).name for page in PAGES for target in re.findall(r"data/[\w.]+\.csv", page.read_text())}
    assert {path.name for path in (DOCS / "results" / "data").iterdir()} == linked


def test_every_experiment_and_method_is_documented():
    text = "\n".join(page.read_text() for page in PAGES if DOCS in page.parents)
    for group in ("experiment", "method", "arm", "seed_init", "optimizer", "lr_schedule"):
        for option in (Path("configs") / group).glob("*.yaml"):
            assert re.search(rf"\b{option.stem}\b", text), f"configs/{group}/{option.name}"


def test_every_package_is_in_the_api():
    listed = (DOCS / "reference" / "api.md").read_text().split()
    packages = ["rnri", "nao", "seedselect", "experiments"]
    nested = [path.parent for name in packages for path in Path(name).rglob("__init__.py")]
    assert {".".join(folder.parts) for folder in nested} <= set(listed)


def test_links_in_notebooks_exist():
    for notebook in Path("notebooks").glob("*.ipynb"):
        text = notebook.read_text()
        assert "README" not in text
        for target in re.findall(r"\]\((?!https://|data:)([^)\s]+)\)", text):
            assert (notebook.parent / target).is_file(), f"{notebook}: {target}"
