"""The output of ``python train.py --help``: the experiments, and how to override their configs.

If the command line contains ``experiment=NAME``, the output is the list of config keys of the experiment ``NAME``.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.config.paths import join
from experiments.config.project import PROJECT
from experiments.config.signatures import source_signature
from experiments.config.unused_keys import read_keys
from experiments.config.validate import HYDRA_KEYS

CONFIGS = PROJECT / "configs"
COMPONENT_GROUPS = ("method", "arm")
"""Config groups for which the help prints one line per config, without the keys of the config."""
DESCRIPTION = """\
Invert images to the seeds of diffusion models, interpolate seeds, and optimize them for rare concepts.

usage: python train.py [experiment=NAME] [key=value ...]
       python train.py experiment=NAME --help      print the keys of an experiment
       python train.py experiment=NAME plan=true   estimate the cost of an experiment without running it
       python train.py experiment=NAME --cfg job   print the config of an experiment as YAML
"""
OVERRIDES = """\
Overrides:
  methods=[ddim,accelerated] steps=10  choose methods by name, and the number of sampling steps
  images=8                             use 8 images, or all images with images=all
  arms=[plain,seedselect_ours]         choose among the arms (compared pipelines) of an experiment on rare concepts
  task.steps=20                        set a key
  model=sd model.path=PATH             choose a config of a config group, and set one of its keys
  'data.concepts=[camel,padlock]'      lists need quotes in most shells
  +arm@task.arms.NAME=seedselect       add an arm with the name NAME
  ~task.arms.plain                     remove a key
  -m lam=0,0.1,1                       run a sweep

Shell completion: eval "$(python train.py -sc install=bash)". Documentation: docs/index.md.
"""


def print_help(arguments: Sequence[str]) -> None:
    """Print the help of one experiment if ``arguments`` contain ``experiment=NAME``, else the general help."""
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if any(override.startswith("experiment=") for override in overrides):
        print(experiment_help(overrides))
    else:
        print(general_help())


def general_help() -> str:
    """Return the general help text: usage, experiments, config groups, and the syntax of overrides."""
    experiments = {path.stem: header_comment(path) for path in sorted((CONFIGS / "experiment").glob("*.yaml"))}
    groups = {
        folder.name: ", ".join(path.stem for path in sorted(folder.glob("*.yaml")))
        for folder in sorted(CONFIGS.iterdir())
        if folder.is_dir() and folder.name not in ("experiment", "sweep", "task")
    }
    return "\n".join(
        [
            DESCRIPTION,
            "Experiments (default: rare_concepts); estimates are the time of the network evaluations (plan=true):",
            *_columns(experiments),
            "",
            "Config groups:",
            *_columns(groups),
            "",
            OVERRIDES.rstrip(),
        ]
    )


def experiment_help(overrides: Sequence[str]) -> str:
    """Return the help text of an experiment: its config keys, their values and their descriptions.

    The description of a key is the comment after the key in the config file. Without a comment, the description is the
    first sentence about the key in the docstring of the class or function that receives the value as an argument.
    """
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        choices = dict(HydraConfig.get().runtime.choices)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    comments = config_comments(choices)
    components = {
        package: f"{option}: {header_comment(CONFIGS / group / f'{option}.yaml')}"
        for group, package, option in _chosen(choices)
        if group in COMPONENT_GROUPS and package
    }
    lines = [f"{choices['experiment']}: {header_comment(CONFIGS / 'experiment' / (choices['experiment'] + '.yaml'))}"]
    read = read_keys(config)
    for key, value, text in config_keys(config, "", comments, components):
        if key not in read:
            continue
        lines += [
            "",
            f"{key}={value}",
            *textwrap.wrap(text, _width() - 4, initial_indent="    ", subsequent_indent="    "),
        ]
    return "\n".join(lines)


def config_keys(
    node: DictConfig, path: str, comments: Mapping[str, str], components: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Yield the key, the value and the description of every config entry below the key ``path``.

    Args:
        node: config node at ``path``.
        comments: comment after each key in its config file, by key.
        components: one-line descriptions of the selected configs of the groups ``COMPONENT_GROUPS``, by key.
    """
    arguments = docstring_arguments(str(node._get_node("_target_"))) if "_target_" in node else {}
    for name in node:
        if name in HYDRA_KEYS:
            continue
        key = join(path, name)
        text = comments.get(key, arguments.get(str(name), ""))
        child = node._get_node(name)
        if key in components:
            yield key, components[key].partition(":")[0], components[key].partition(": ")[2]
        elif isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation() and len(child):
            yield from config_keys(child, key, comments, components)
        else:
            value = "???" if child._is_missing() else OmegaConf.to_container(OmegaConf.create({"v": child}))["v"]
            yield key, _format(value), text


def _format(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"[{len(value)} entries]"
    return str(value).replace("'", "")


def config_comments(choices: Mapping[str, str]) -> dict[str, str]:
    """Return a dict from dotted keys, such as ``task.steps``, to comments in the config files that Hydra has selected.

    The comment of a key is on the same line as the key.

    Args:
        choices: for each config group, the name of the config that Hydra has selected.
    """
    comments = file_comments(CONFIGS / "train.yaml", "")
    for group, package, option in _chosen(choices):
        path = CONFIGS / group / f"{option}.yaml"
        if path.is_file():
            comments |= file_comments(path, package)
    return comments


def _chosen(choices: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield the group, the package (the prefix of the keys) and the name of each config that Hydra has selected."""
    for name, option in choices.items():
        group, _, package = name.partition("@")
        if option is not None:
            yield group, "" if group == "experiment" else package or group, option


def file_comments(path: Path, package: str) -> dict[str, str]:
    """Return a dict from dotted keys in the full config, such as ``task.steps``, to comments in one config file.

    The comment of a key is on the same line as the key.

    Args:
        path: the config file.
        package: prefix of the keys of this file in the full config.
    """
    comments: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"^( *)([\w.]+):(?:\s.*?)?(?:\s#\s+(.*))?$", line)
        if not match:
            continue
        indent = len(match[1])
        name = match[2]
        comment = match[3]
        parents = [(level, key) for level, key in parents if level < indent]
        key = ".".join([*([package] if package else []), *(key for _, key in parents), name])
        parents.append((indent, name))
        if comment:
            comments[key] = comment
    return comments


def header_comment(path: Path) -> str:
    """Return the comment at the top of a config file, used as the description of the config."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def docstring_arguments(target: str) -> dict[str, str]:
    """Return the first sentence about each parameter in the docstring of the class or function ``target``, by name."""
    signature = source_signature(target)
    return {name: parameter.doc for name, parameter in signature.parameters.items()} if signature else {}


def _columns(entries: Mapping[str, str]) -> list[str]:
    """Return the lines of a table with the columns name and text, wrapped to the width of the terminal."""
    indent = max(map(len, entries)) + 4
    lines = []
    for name, text in entries.items():
        wrapped = textwrap.wrap(text, max(_width() - indent, 40)) or [""]
        lines.append(f"  {name:<{indent - 2}}{wrapped[0]}")
        lines += [" " * indent + line for line in wrapped[1:]]
    return lines


def _width() -> int:
    return min(shutil.get_terminal_size((110, 24)).columns, 120)
