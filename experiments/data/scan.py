"""Finds image files and folders of concepts in user-provided folders. Files that are not images are ignored."""

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
NON_RASTER_FORMATS = {"BUFR", "GRIB", "HDF5", "MPEG"}  # formats that Pillow recognizes but cannot decode
MAX_NAMED = 3  # maximum number of files that a message lists


@dataclass(frozen=True)
class Listing:
    """The subfolders, the image files and the other files of a folder; each of the three lists is sorted by name.

    Hidden files and files that operating systems create, such as ``Thumbs.db``, are omitted.
    """

    folders: list[Path]
    images: list[Path]
    others: list[Path]


@cache
def _formats() -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the file suffixes and the names of the image formats that Pillow reads."""
    Image.init()
    formats = tuple(name for name in Image.OPEN if name not in NON_RASTER_FORMATS)
    suffixes = (suffix for suffix, name in Image.registered_extensions().items() if name in formats)
    return frozenset(suffixes), formats


def list_folder(folder: Path) -> Listing:
    """Return the subfolders, images and other files of ``folder``.

    A file is an image if it has the suffix of an image format (even if the file is damaged), or if Pillow recognizes
    its content.

    Raises:
        ValueError: ``folder`` does not exist, is not a folder, or cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: choose a folder of images.")
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
    except Exception:  # the image is damaged or too large; reading the image later raises the error
        return True


def named_folders(folder: Path) -> dict[str, Path]:
    """Return a dict that maps the normalized name of each subfolder of ``folder`` to its path, sorted by folder name.

    Raises:
        ValueError: two subfolders have the same name after :func:`~experiments.naming.normalize_name`.
    """
    folders = list_folder(folder).folders
    names = unique_names((path.name for path in folders), f"the folder {folder}", "rename or merge them")
    return dict(zip(names, folders, strict=True))


def image_files(folders: Iterable[Path], *, loose: Sequence[Path] = ()) -> list[list[Path]]:
    """Return the image files of each folder, sorted by name. A warning lists all other files and subfolders.

    Args:
        folders: folders of images.
        loose: paths outside ``folders`` that the warning also lists as ignored.

    Raises:
        ValueError: a folder is missing or contains no image.
    """
    listings = image_listings(folders)
    warn_ignored([*loose, *(path for listing in listings for path in (*listing.folders, *listing.others))])
    return [listing.images for listing in listings]


def image_listings(folders: Iterable[Path]) -> list[Listing]:
    """Return the subfolders, image files and other files of each folder.

    Raises:
        ValueError: a folder is missing or contains no image.
    """
    listings = [(folder, list_folder(folder)) for folder in folders]
    for folder, listing in listings:
        if not listing.images:
            others = [*listing.folders, *listing.others]
            content = f", only {format_some(others)}" if others else ""
            raise ValueError(
                f"{folder} contains no images that Pillow reads{content}: add images or remove the folder."
            )
    return [listing for _, listing in listings]


def warn_ignored(paths: Sequence[Path]) -> None:
    """Print a warning that lists the ignored files ``paths``, which are not images of a concept.

    If ``paths`` is empty, nothing is printed.
    """
    if paths:
        rank_zero_warn(
            f"these files are ignored, because they are not images in the folder of a concept: {format_some(paths)}. "
            "Convert photographs in formats that Pillow cannot read, such as HEIC, to JPEG.",
            stacklevel=3,
        )


def format_some(paths: Sequence[Path]) -> str:
    """Return a string with the first three paths as ``FOLDER/NAME`` and the number of the remaining paths."""
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return ", ".join(f"{path.parent.name}/{path.name}" for path in paths[:MAX_NAMED]) + more
