"""Finds images and concepts in user folders; one warning names the entries that are neither."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, UnidentifiedImageError

from experiments.naming import unique_names

OS_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"}
NON_RASTER_FORMATS = {"BUFR", "GRIB", "HDF5", "MPEG"}  # Pillow recognizes but cannot decode them
MAX_NAMED = 3  # entries in a message


@dataclass(frozen=True)
class Listing:
    """Entries of a folder sorted by name: folders, images and other files.

    Hidden files and files that operating systems create are in none of them.
    """

    folders: list[Path]
    images: list[Path]
    others: list[Path]


@cache
def _formats() -> tuple[frozenset[str], tuple[str, ...]]:
    """Suffixes and formats of images that Pillow reads."""
    Image.init()
    formats = tuple(name for name in Image.OPEN if name not in NON_RASTER_FORMATS)
    suffixes = (suffix for suffix, name in Image.registered_extensions().items() if name in formats)
    return frozenset(suffixes), formats


def list_folder(folder: Path) -> Listing:
    """Lists ``folder``. An image has the suffix of an image format, readable or not, or is recognized by Pillow.

    Raises:
        ValueError: the folder is missing, not a folder, or not readable.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give a folder of images.")
    try:
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if _is_visible(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error.strerror}): change its permissions.") from None
    listing = Listing([], [], [])
    for entry in visible:
        path = folder / entry.name
        kind = listing.folders if entry.is_dir() else listing.images if _is_image(path) else listing.others
        kind.append(path)
    return listing


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in OS_FILES


def _is_image(path: Path) -> bool:
    suffixes, formats = _formats()
    if path.suffix.lower() in suffixes:
        return True
    if not path.is_file():
        return False
    try:
        with Image.open(path, formats=formats):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # recognized but damaged or huge: reading it reports the error
        return True


def named_folders(folder: Path) -> dict[str, Path]:
    """The folders in ``folder`` by normalized name, sorted by name.

    ValueError if two have the same normalized name.
    """
    folders = list_folder(folder).folders
    names = unique_names((path.name for path in folders), f"the folder {folder}", "rename or merge them")
    return dict(zip(names, folders, strict=True))


def image_files(folders: Iterable[Path], *, loose: Sequence[Path] = ()) -> list[list[Path]]:
    """Images of each folder sorted by name. One warning names ignored entries.

    Args:
        folders: of images; other files and folders in them are ignored.
        loose: further ignored entries, for the warning.

    Raises:
        ValueError: a folder is missing or has no image.
    """
    images: list[list[Path]] = []
    ignored = list(loose)
    for folder in folders:
        listing = list_folder(folder)
        others = [*listing.folders, *listing.others]
        if not listing.images:
            content = f", only {format_some(others)}" if others else ""
            raise ValueError(f"{folder} contains no images that Pillow reads{content}: add some or remove the folder.")
        images.append(listing.images)
        ignored += others
    if ignored:
        rank_zero_warn(
            f"ignored, because they are not images in the folder of a concept: {format_some(ignored)}. Convert "
            "photographs in other formats, such as HEIC.",
            stacklevel=3,
        )
    return images


def format_some(paths: Sequence[Path]) -> str:
    """The first paths with their folders, and the number of the others."""
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return ", ".join(f"{path.parent.name}/{path.name}" for path in paths[:MAX_NAMED]) + more
