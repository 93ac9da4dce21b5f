"""``python -m experiments.app [key=value ...]``: the interactive page, with the keys of ``configs/app.yaml``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import experiments  # noqa: F401  # makes ${project:...} known to the configs
from experiments.app.settings import Settings

if TYPE_CHECKING:  # PyTorch is imported when the command line is understood
    from experiments.app.context import Studio

MADE = ("model", "method", "select")
"""The keys that objects are made of; the others are ``Settings``."""
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def configured(overrides: list[str]) -> DictConfig:
    """``configs/app.yaml`` with ``overrides``, as one types them."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("app", overrides)


def made(config: DictConfig) -> Studio:
    """The networks and settings that all visitors share.

    Raises:
        ValueError: one sentence for a setting that cannot be.
    """
    from experiments.app.context import Bounds, Studio, chosen_device, default_steps
    from seedselect import ClipFeatures

    settings = settings_of(config)
    device = chosen_device(settings.device)
    model = instantiate(config.model)(device=device)
    clip = partial(
        ClipFeatures.from_pretrained, settings.clip, device=device, dtype="float32",
        local_files_only=config.model.local_files_only,
    )  # fmt: skip
    steps = settings.steps or default_steps(model.default_guidance)
    bounds = Bounds(int(settings.megabytes * 1e6), settings.pixels)
    return Studio(
        model,
        steps,
        settings.guidance,
        instantiate(config.method),
        clip,
        instantiate(config.select),
        settings.gradient_steps,
        settings.examples,
        bounds,
    )


def settings_of(config: DictConfig) -> Settings:
    """ValueError, one sentence that names the key, for a value that cannot be."""
    plain = OmegaConf.to_container(config, resolve=True)
    return Settings(**{name: value for name, value in plain.items() if name not in MADE})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.app", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of configs/app.yaml, as for train.py")
    config = configured(parser.parse_args().overrides)
    settings, studio = settings_of(config), made(config)
    with tempfile.TemporaryDirectory(prefix="seeds-") as folder:  # whatever visitors bring is gone with the page
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        from experiments.app.compare_tab import open_booth
        from experiments.app.page import build, serve

        booth = open_booth(settings.run, settings.methods, settings.ratings) if settings.run else None
        files = Path(folder) / "seeds"
        files.mkdir()
        serve(build(studio, files, booth), host=settings.host, port=settings.port, most_bytes=studio.bounds.bytes)


def command() -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and does not print in its own way
    try:
        main()
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        sys.exit("error: the page needs Gradio: pip install -e '.[app]'")
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {said(error)}")


def said(error: BaseException) -> str:
    """An error as one sentence; of Hydra's, what the class that it called had to say."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


if __name__ == "__main__":
    command()
