"""Reads image files and their prompts from a file, a folder or a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rnri.tables import first_caption, read_columns
from rnri.validation import ConfigError

TABLES = (".csv", ".tsv", ".jsonl")
"""File suffixes of caption tables (tables with the names of image files and their captions)."""


@dataclass(frozen=True)
class CaptionedFile:
    """An image file with its prompt.

    Attributes:
        path: the image file.
        prompt: prompt of the image.
        edit: edited prompt; None if the image is not edited.
    """

    path: Path
    prompt: str
    edit: str | None = None


def read_captions(
    source: Path,
    *,
    prompt: str | None = None,
    edit: str | None = None,
    images: Path | None = None,
    columns: tuple[str, str, str | None] = ("image", "caption", None),
) -> list[CaptionedFile]:
    """Return the image files of ``source`` with their prompts.

    Args:
        source: an image file; a folder of images, each with its caption in a text file of the same name (``photo.txt``
            next to ``photo.jpg``); or a table of images and captions (``.csv``, ``.tsv`` or ``.jsonl``).
        prompt: prompt of the image file; None for a folder or a table, which contains the prompts of its images.
        edit: edited prompt of all images that have no edited prompt in the table. With None, images without an edited
            prompt in the table are not edited.
        images: folder of the image files of a table; None means the folder that contains the table.
        columns: names of the table's columns with the image files, the prompts and the edited prompts; the last name is
            None if the table has no edited prompts.

    Raises:
        ConfigError: an argument does not fit ``source``, or an image or a prompt is missing.
        ValueError: the table cannot be read.
    """
    if source.parts[:1] in (("http:",), ("https:",)):
        raise ConfigError("source", "URLs are not downloaded; download the image and pass its path.")
    if source.suffix.lower() in TABLES:
        files = _from_table(source, images or source.parent, columns)
    elif source.is_dir():
        files = _from_folder(source)
    elif not source.is_file():
        raise ConfigError("source", f"{source} is neither a file nor a folder; choose an image, folder or table.")
    elif prompt is None:
        raise ConfigError("prompt", f"must be given for the image {source}.")
    else:
        return [CaptionedFile(source, prompt, edit)]
    if prompt is not None:
        raise ConfigError(
            "prompt", f"got a prompt for {source}, which already has a prompt for every image; omit the prompt."
        )
    if not files:
        raise ConfigError("source", f"{source} contains no image with a caption; choose another source.")
    return [CaptionedFile(file.path, file.prompt, file.edit or edit) for file in files]


def _from_folder(folder: Path) -> list[CaptionedFile]:
    Image.init()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}  # without PDF
    paths = [
        path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes and not path.name.startswith(".")
    ]
    files = []
    for path in paths:
        caption = path.with_suffix(".txt")
        if not caption.is_file():
            raise ConfigError("source", f"{path} has no caption; write its caption to {caption}.")
        files.append(CaptionedFile(path, _read_caption(caption)))
    return files


def _read_caption(path: Path) -> str:
    try:
        caption = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ConfigError("source", f"{path} is not UTF-8 ({error.reason}); save the caption as UTF-8.") from None
    if not caption:
        raise ConfigError("source", f"{path} contains no caption; write the caption of the image to this file.")
    return caption


def read_table(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each row of a caption table as its position (such as "row 3"), its image file name and its texts.

    Args:
        path: table in a format of ``TABLES``.
        columns: maps the setting with which the user chooses a column (such as ``--prompt-column``) to the name of the
            column. Error messages show the settings. The first column contains the names of image files. A cell of the
            other columns is a string, a list of strings, or empty. From a list of strings, the first string that is not
            blank is used.

    Raises:
        ValueError: the table cannot be read, a row has no file name, or one of the texts is not a string.
    """
    column = next(iter(columns.values()))
    for place, (name, *texts) in read_columns(path, columns):
        if not isinstance(name, str) or not name:
            raise ValueError(f"{path}: the column {column!r} has {name!r} in {place}: write the name of an image file.")
        yield place, name, [first_caption(text, f"{path}: {place}") for text in texts]


def _from_table(path: Path, images: Path, columns: Sequence[str | None]) -> list[CaptionedFile]:
    """Return the image files of all table rows that have a prompt."""
    if not path.is_file():
        raise ConfigError("source", f"{path} does not exist.")
    options = ("--image-column", "--prompt-column", "--edit-column")
    names = {option: name for option, name in zip(options, columns, strict=True) if name is not None}
    files = []
    for place, name, (prompt, *edits) in read_table(path, names):
        if not (images / name).is_file():
            raise ConfigError(
                "source",
                f"{path}: {place} names the image {name!r}, which is not a file in {images}; set --images to the "
                "folder of the image files.",
            )
        if prompt:
            files.append(CaptionedFile(images / name, prompt, edits[0] if edits else None))
    return files
