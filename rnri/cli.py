"""The options of the command ``python -m rnri``, which inverts image files and reports the PSNR."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rnri.command import DEFAULT_MODEL, Options, run
from rnri.image_batch import Fit

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def option(help_text: str) -> typer.models.OptionInfo:
    return typer.Option(help=help_text)


@app.command()
def main(
    source: Annotated[
        Path,
        typer.Argument(
            help="An image file; a folder of images with captions (photo.txt next to photo.jpg); or a table of images "
            "and captions (.csv, .tsv, .jsonl)."
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="Prompt of the image file. Leave the prompt out for folders and tables, which have their own prompts."
        ),
    ] = None,
    model: Annotated[str, option("Checkpoint: folder in the format of diffusers, or Hub id (owner/name).")] = str(
        DEFAULT_MODEL
    ),
    edit: Annotated[str | None, option("Edited prompt; images edited with this prompt are also written.")] = None,
    methods: Annotated[
        str, option("Inversion methods, separated by commas. Several methods are compared in a table.")
    ] = "accelerated",
    steps: Annotated[int, option("Number of sampling steps.")] = 20,
    guidance: Annotated[float, option("Scale of classifier-free guidance; 1 disables guidance.")] = 1.0,
    fit: Annotated[Fit, option("How images are fitted to the model's image size; exact keeps the size.")] = "crop",
    out: Annotated[Path, option("Folder to which the results are written.")] = Path("rnri_output"),
    device: Annotated[
        str, option("Device of the model, such as cuda; auto means the GPU if there is one, otherwise the CPU.")
    ] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        option("Data type of the model; auto is float16 on a GPU and float32 on a CPU."),
    ] = "auto",
    batch_size: Annotated[int, option("Number of images that are inverted in one batch.")] = 4,
    image_column: Annotated[str, option("Name of the column with the image files if the source is a table.")] = "image",
    prompt_column: Annotated[str, option("Name of the column with the prompts if the source is a table.")] = "caption",
    edit_column: Annotated[
        str | None, option("Name of the column with the edited prompts if the source is a table.")
    ] = None,
    images: Annotated[
        Path | None,
        option("Folder of the image files if the source is a table; the default is the folder of the table."),
    ] = None,
) -> None:
    """Invert images to seeds (initial noise), reconstruct the images, and report the PSNR of the reconstructions.

    The results are images (original and reconstruction side by side), seed files, and edited images. Without --model,
    the command uses a small model that is part of the repository and was trained on drawings of emojis.
    """
    options = Options(
        model=model,
        methods=tuple(dict.fromkeys(name.strip() for name in methods.split(","))),
        steps=steps,
        guidance=guidance,
        fit=fit,
        out=out,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        image_column=image_column,
        prompt_column=prompt_column,
        edit_column=edit_column,
        images=images,
    )
    try:
        run(source, prompt, edit, options)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(f"Interrupted. The results of finished images are in {out}.", err=True)
        raise typer.Exit(130) from None
