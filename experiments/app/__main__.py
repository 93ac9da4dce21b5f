"""Start the web page: ``python -m experiments.app [key=value ...]``. ``configs/app.yaml`` describes the keys."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config.project import project_path

if TYPE_CHECKING:  # imported after the command line is checked, because the import of PyTorch takes seconds
    from experiments.app.context import AppContext
    from experiments.app.settings import Settings

INSTANTIATED = ("model", "method", "select")
"""Keys of ``configs/app.yaml`` from which Hydra creates objects. All other keys are fields of ``Settings``."""
PACKAGES = ("gradio", "pillow_heif", "av")
"""Packages that ``pip install -e '.[app]'`` installs."""


def compose_config(overrides: list[str]) -> DictConfig:
    """Compose the config ``configs/app.yaml`` with the ``overrides`` from the command line.

    Raises:
        ValueError: an override has a key that is not in the config.
    """
    with initialize_config_dir(project_path("configs"), version_base="1.3"):
        keys = list(compose("app"))
        for override in overrides:
            key = override.partition("=")[0].partition("@")[0].partition(".")[0]
            if key.isidentifier() and key not in keys:
                close = get_close_matches(key, keys, n=1)
                remedy = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(keys)}."
                raise ValueError(f"{key}: no such key in configs/app.yaml; {remedy}")
        return compose("app", overrides)


def check_run(folder: str | None) -> None:
    """Raise ValueError if ``folder`` is not the folder of a finished run.

    The check is fast, because it does not use PyTorch.
    """
    if folder is None:
        return
    for name in ("results.json", "samples.parquet"):
        if not (Path(folder) / name).is_file():
            raise ValueError(f"run: {folder} is not a finished run ({name} is missing): set run to another folder.")


def check_port(host: str, port: int) -> None:
    """Raise ValueError if a server cannot listen on this host and port, for example because the port is in use."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()
    except OSError as error:
        raise ValueError(
            f"port: cannot listen on {host}:{port} ({error.strerror}); choose another port, such as port={port + 1}, "
            "or another host."
        ) from None


def parse_settings(config: DictConfig) -> Settings:
    """Return the fields of ``Settings`` from the config; raise ConfigError if a value is invalid."""
    from experiments.app.settings import Settings

    values = OmegaConf.to_container(config, resolve=True)
    return Settings(**{name: value for name, value in values.items() if name not in INSTANTIATED})


def build_context(config: DictConfig) -> AppContext:
    """Load the networks and settings that all visitors of the page share.

    Raises:
        ValueError: a setting is invalid; the message contains the key of the setting.
    """
    settings = parse_settings(config)

    from experiments.app.checkpoint_info import model_sentence, read_checkpoint_info
    from experiments.app.context import AppContext, check_method, default_steps, resolve_device
    from experiments.app.uploads import UploadLimits, example_files
    from experiments.evaluation.classifier import load_classifier
    from rnri.quiet import quiet_libraries
    from rnri.validation import ConfigError
    from seedselect import ClipFeatures

    quiet_libraries()

    device = resolve_device(settings.device)
    example_files(settings.examples)  # raises ValueError if there are no examples; called before the model is loaded
    info = read_checkpoint_info(config.model.path)
    method = instantiate(config.method)
    check_method(method)
    select = instantiate(config.select)
    try:
        clip = ClipFeatures.from_pretrained(
            settings.clip, device=device, dtype="float32", local_files_only=config.model.local_files_only
        )
    except ValueError as error:
        raise ConfigError("clip", str(error)) from error
    try:
        classifier = None if settings.classifier is None else load_classifier(settings.classifier, device)
    except ValueError as error:
        raise ConfigError("classifier", str(error)) from error
    model = instantiate(config.model)(device=device)
    return AppContext(
        model=model,
        steps=settings.steps or default_steps(model.default_guidance),
        guidance=settings.guidance,
        method=method,
        clip=clip,
        classifier=classifier,
        select=select,
        gradient_steps=settings.gradient_steps,
        examples_from=settings.examples,
        limits=UploadLimits(int(settings.max_upload_mb * 1e6), settings.max_upload_pixels),
        info=info,
        description=model_sentence(config.model.path, config.model.get("lora"), info),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.app",
        description="Start the web page.",
        epilog=Path(project_path("configs/app.yaml")).read_text(encoding="utf-8"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of configs/app.yaml")
    config = compose_config(parser.parse_args().overrides)
    check_run(config.run)
    settings = parse_settings(config)
    check_port(settings.host, settings.port)
    with tempfile.TemporaryDirectory(prefix="seeds-") as folder:  # the folder is deleted when the server stops
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        from experiments.app.compare_tab import open_session
        from experiments.app.page import build, serve

        session = open_session(settings)
        context = build_context(config)
        files = Path(folder) / "seeds"
        files.mkdir()
        page = build(context, files, session)
        serve(page, host=settings.host, port=settings.port, max_upload_bytes=context.limits.max_bytes)


def command() -> None:
    """Run ``main``. If a setting is invalid or a file is missing, print the error in one line and exit."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise exceptions instead of printing errors
    try:
        main()
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        sys.exit(f"error: the page needs the package {error.name}; run: pip install -e '.[app]'")
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """Return the message of ``error`` in one line. For an exception of Hydra, return the message of its cause."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


if __name__ == "__main__":
    command()
