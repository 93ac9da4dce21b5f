"""The implementation of ``python -m rnri``: reads images and prompts, inverts the images, and writes the results."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from PIL import Image
from torch import Tensor

from rnri.captions import TABLES, CaptionedFile, read_captions
from rnri.image_batch import Fit, check_image_file
from rnri.methods.registry import ALL_METHODS, METHODS
from rnri.models.diffusion import LatentDiffusion
from rnri.pipeline_inversion import PipelineInversion, stack_images
from rnri.quiet import quiet_libraries
from rnri.validation import ConfigError, Dtype, first_line

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

DEFAULT_MODEL = Path(__file__).parents[1] / "assets" / "models" / "emoji"
"""Folder of the small model that ships with the repository; the model was trained on drawings of emojis."""

COLUMNS = ("method", "PSNR (dB)", "VAE (dB)", "as good as the VAE", "NFE", "s per image", "images")
"""Column names of the table that compares the inversion methods."""


@dataclass(frozen=True)
class Options:
    """Options of ``python -m rnri``; ``python -m rnri --help`` describes each option."""

    model: str
    methods: tuple[str, ...]
    steps: int
    guidance: float
    fit: Fit
    out: Path
    device: str
    dtype: Dtype | Literal["auto"]
    batch_size: int
    image_column: str
    prompt_column: str
    edit_column: str | None
    images: Path | None


def run(source: Path, prompt: str | None, edit: str | None, options: Options) -> None:
    """Invert the images of ``source`` with every method, write the results to ``options.out``, and print the PSNR.

    Raises:
        ValueError: an argument or a file is invalid. If possible, the error is raised before the model is loaded.
        OSError: a file cannot be read or written.
    """
    for method in options.methods:
        if method not in METHODS:
            reason = "needs more tensors than a seed to reconstruct images" if method in ALL_METHODS else "is unknown"
            raise ConfigError("--methods", f"{method!r} {reason}; choose one of {', '.join(METHODS)}.")
    if options.batch_size < 1:
        raise ConfigError("--batch-size", f"must be at least 1 image per batch, got {options.batch_size}.")
    files = _read(source, prompt, edit, options)
    _check_results_replace_no_image(files, options)
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError("--out", f"{options.out} is not a folder; choose another path.")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "--out", f"{options.out} cannot be created ({error.strerror}); choose another path."
        ) from None
    model = _load(options)
    rows = []
    for method, folder in _folders(options).items():
        inversions = []
        for batch in _batches(files, options.batch_size):
            inversion = _invert(model.pipeline, batch, method, options)
            _write(model.pipeline, batch, inversion, folder)
            for file, single in zip(batch, inversion, strict=True):
                print(f"{method}: {file.path.name}: {single.quality} ({int(single.nfe.sum())} evaluations)")
            inversions.append(inversion)
        rows.append(_row(method, inversions))
    if len(rows) > 1 or len(files) > 1:
        print(_write_table(rows, options.out))
    print(f"Results: {options.out}")


def _read(source: Path, prompt: str | None, edit: str | None, options: Options) -> list[CaptionedFile]:
    """Return the image files with their prompts.

    Raises:
        ConfigError: an option does not apply to ``source``, an image has no prompt, two images have the same name, or a
            prompt is given for a folder or a table.
        ValueError: an image is damaged.
    """
    files = read_captions(
        source,
        prompt=prompt,
        edit=edit,
        images=options.images,
        columns=(options.image_column, options.prompt_column, options.edit_column),
    )
    is_table = source.suffix.lower() in TABLES
    for option, value in (("--images", options.images), ("--edit-column", options.edit_column)):
        if value is not None and not is_table:
            raise ConfigError(
                option, f"is an option of tables ({', '.join(TABLES)}), got the source {source}; omit it."
            )
    for file in files:
        check_image_file(file.path)
    names = [file.path.stem for file in files]
    names += [f"{file.path.stem}_edit" for file in files if file.edit is not None]
    if len(set(names)) != len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise ConfigError(
            "source",
            f"two images have the name {name!r}; rename one of them, because results are named after the image, and "
            "the result of an edit has the suffix _edit.",
        )
    return files


def _check_results_replace_no_image(files: Sequence[CaptionedFile], options: Options) -> None:
    """Raise ConfigError if the path of a result is the path of an image that is read."""
    images = {file.path.resolve() for file in files}
    for folder in _folders(options).values():
        for file in files:
            for suffix in ("", "_edit"):
                result = folder / f"{file.path.stem}{suffix}.png"
                if result.resolve() in images:
                    raise ConfigError("--out", f"the result {result} would replace an image; choose another folder.")


def _folders(options: Options) -> dict[str, Path]:
    """Return the folder of the results of each method."""
    several = len(options.methods) > 1
    return {method: options.out / method if several else options.out for method in options.methods}


def _load(options: Options) -> LatentDiffusion:
    """Load the model without the progress bars and information messages of diffusers and transformers."""
    quiet_libraries()
    logging.getLogger("rnri").setLevel(logging.INFO)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unavailable device raises one of the two
        raise ConfigError("--device", f"PyTorch cannot use {device!r} ({first_line(error)}); choose cpu.") from None
    model = LatentDiffusion.from_pretrained(options.model, device=device, dtype=options.dtype)
    model.pipeline.set_progress_bar_config(leave=False)
    return model


def _batches(files: Sequence[CaptionedFile], size: int) -> Iterator[Sequence[CaptionedFile]]:
    return (files[i : i + size] for i in range(0, len(files), size))


def _invert(
    pipe: DiffusionPipeline, files: Sequence[CaptionedFile], method: str, options: Options
) -> PipelineInversion:
    from rnri.api import invert

    return invert(
        pipe,
        [file.path for file in files],
        [file.prompt for file in files],
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        method=method,
        fit=options.fit,
    )


def _write(pipe: DiffusionPipeline, files: Sequence[CaptionedFile], inversion: PipelineInversion, folder: Path) -> None:
    """For each of ``files``, write its seed, the image next to its reconstruction, and the edited image (if any)."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, single in zip(files, inversion, strict=True):
        single.save(folder / f"{file.path.stem}.safetensors")
        stack_images(single.to_pil()).save(folder / f"{file.path.stem}.png")
        if file.edit is not None:
            from rnri.editing import edit

            edited = edit(pipe, single, file.edit, output_type="pil")
            cast(Image.Image, edited.images[0]).save(folder / f"{file.path.stem}_edit.png")


def _row(method: str, inversions: Sequence[PipelineInversion]) -> tuple[str, ...]:
    """Return the cells of the comparison table's row for ``method``, in the order of ``COLUMNS``."""
    psnr = torch.cat([inversion.psnr for inversion in inversions])
    vae_psnr = torch.cat([inversion.vae_psnr for inversion in inversions])
    converged = torch.cat([inversion.converged for inversion in inversions])
    nfe = torch.cat([inversion.nfe.sum(0) for inversion in inversions])
    seconds = sum(inversion.seconds for inversion in inversions) / len(psnr)
    return (
        method,
        _mean(psnr),
        _mean(vae_psnr),
        f"{int(converged.sum())} of {len(converged)}",
        f"{float(nfe.double().mean()):g}",
        f"{seconds:.2f}",
        str(len(psnr)),
    )


def _mean(values: Tensor) -> str:
    """Return the mean of ``values [B]`` as text, with the half width of its 95 % confidence interval if B > 1."""
    mean = f"{float(values.mean()):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {1.96 * float(values.std()) / len(values) ** 0.5:.1f}"


def _write_table(rows: Sequence[tuple[str, ...]], folder: Path) -> str:
    """Write ``table.csv`` and ``table.md``, and return the Markdown table."""
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    return table
