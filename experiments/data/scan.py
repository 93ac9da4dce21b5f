"""Which entries of a user's folders are images and which are concepts; what is neither is said, once."""

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
NON_RASTER_FORMATS = {"BUFR", "GRIB", "HDF5", "MPEG"}  # formats that Pillow names but cannot decode
MAX_NAMED = 3  # entries that a message names


@dataclass(frozen=True)
class Listing:
    """A folder's entries in the order of their names: folders, images, and what is no image.

    Names that begin with a dot, and the files that systems leave behind, are in none of them.
    """

    folders: list[Path]
    images: list[Path]
    others: list[Path]


@cache
def _formats() -> tuple[frozenset[str], tuple[str, ...]]:
    """The endings that stand for images that Pillow reads, and the formats that it reads."""
    Image.init()
    formats = tuple(name for name in Image.MAX_OPEN_FILES if name not in NON_RASTER_FORMATS)
    endings = (ending for ending, name in Image.registered_extensions().items() if name in formats)
    return frozenset(endings), formats


def list_folder(folder: Path) -> Listing:
    """What ``folder`` holds. An image is what has an image's ending, readable or not, or what Pillow recognizes.

    Raises:
        ValueError: it is missing, no folder, or may not be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name one that holds images.")
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if _counts(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error.strerror}): give the right to, or name another.") from None
    listing = Listing([], [], [])
    for entry in found:
        path = folder / entry.name
        kind = listing.folders if entry.is_dir() else listing.images if _is_image(path) else listing.others
        kind.append(path)
    return listing


def _counts(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in OS_FILES


def _is_image(path: Path) -> bool:
    endings, formats = _formats()
    if path.suffix.lower() in endings:
        return True
    if not path.is_file():
        return False
    try:
        with Image.open(path, formats=formats):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # recognized, and damaged or huge: whoever reads it says so
        return True


def named_folders(folder: Path) -> dict[str, Path]:
    """The folders of ``folder`` by the canonical form of their names, in the order of names.

    ValueError if two are one name.
    """
    folders = list_folder(folder).folders
    names = unique_names((path.name for path in folders), f"the folder {folder}", "rename or merge them")
    return dict(zip(names, folders, strict=True))


def image_files(folders: Iterable[Path], *, loose: Sequence[Path] = ()) -> list[list[Path]]:
    """The images of each folder in the order of their names. One warning names what else lies there.

    Args:
        folders: each of images; what they hold of other files and of folders is left out.
        loose: other entries that are left out, for the warning.

    Raises:
        ValueError: a folder is missing or has no image.
    """
    found, left_out = [], list(loose)
    for folder in folders:
        listing = list_folder(folder)
        others = [*listing.folders, *listing.others]
        if not listing.images:
            held = f", only {format_some(others)}" if others else ""
            raise ValueError(f"{folder} holds no images that Pillow reads{held}: add some or remove the folder.")
        found.append(listing.images)
        left_out += others
    if left_out:
        rank_zero_warn(
            f"left out, for they are no images in a concept's folder that Pillow reads: {format_some(left_out)}. Photographs "
            "in other formats, such as HEIC, have to be converted.",
            stacklevel=3,
        )
    return found


def format_some(paths: Sequence[Path]) -> str:
    """The first of the paths with the folders that they lie in, and how many more there are."""
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return ", ".join(f"{path.parent.name}/{path.name}" for path in paths[:MAX_NAMED]) + more
