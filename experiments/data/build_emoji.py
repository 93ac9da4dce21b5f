"""Builds the emoji corpus ``assets/emoji`` from the drawings of nine emoji designers.

``python -m experiments.data.build_emoji`` downloads npm packages of pinned versions with ``npm pack``, finds the
drawings of each concept of ``assets/emoji/concepts.csv`` in the packages, renders the drawings and writes these files
to ``runs/emoji`` or ``--output``:

- ``drawings-{corpus,reference,fid}.parquet``: one row per drawing, with its designer, license and package;
- ``captions.parquet``: one row per caption, with the columns image_id, augmentation_seed and caption;
- ``concepts.csv``: one row per concept, with the number of captions that mention the concept.

The same package versions always give byte-identical files. ``--output assets/emoji`` replaces the corpus of this
repository. ``--size 512`` renders drawings of 512 x 512 pixels, for a model that generates larger images.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from experiments.cache.atomic import CannotWrite, atomic_write
from experiments.data.backgrounds import AUGMENTATIONS, Augmentation
from experiments.data.count_emoji import write_concepts

CONCEPTS_TABLE = Path(__file__).parents[2] / "assets" / "emoji" / "concepts.csv"
OUTPUT = Path("runs/emoji")
UNICODE_NAMES = "unicode-emoji-json@0.9.0"
GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
SPLITS = ("corpus", "reference", "fid")
MIN_DESIGNERS = 7  # minimum number of designers who have drawn a concept
REFERENCES = 3  # number of reference drawings per concept; no caption describes a reference drawing
MIN_CAPTIONS, MAX_CAPTIONS = 8, 5_000  # smallest and largest number of captions per concept
SEED = 2312_12540  # random seed of the splits and the captions

TEMPLATES = (  # caption templates, each with the fraction of captions that use the template
    ("a drawing of {phrase} in {style} style on a {background} background", 0.45),
    ("a drawing of {phrase} on a {background} background", 0.20),
    ("{phrase} on a {background} background, {style} style", 0.15),
    ("a drawing of {phrase} in {style} style", 0.10),
    ("a drawing of {phrase}", 0.10),
)


@dataclass(frozen=True)
class Designer:
    """The designer of one set of emoji drawings (icon set).

    Attributes:
        name: name of the icon set, which identifies the designer.
        package: npm package of the icon set, with version. The package has the JSON format of Iconify.
        style: words that describe the style of the drawings in captions.
    """

    name: str
    package: str
    style: str

    @property
    def scoped(self) -> str:
        return f"@iconify-json/{self.package}"


DESIGNERS = (
    Designer("noto", "noto@1.2.9", "noto"),
    Designer("noto-v1", "noto-v1@1.2.5", "old noto"),
    Designer("twemoji", "twemoji@1.2.5", "twemoji"),
    Designer("openmoji", "openmoji@1.2.29", "openmoji"),
    Designer("fluent-emoji", "fluent-emoji@1.2.7", "fluent"),
    Designer("fluent-emoji-flat", "fluent-emoji-flat@1.2.6", "flat fluent"),
    Designer("emojione", "emojione@1.2.3", "emojione"),
    Designer("emojione-v1", "emojione-v1@1.2.3", "old emojione"),
    Designer("fxemoji", "fxemoji@1.2.2", "fxemoji"),
)


@dataclass(frozen=True)
class IconSet:
    """All drawings of one designer. A drawing is looked up by its Unicode code points or by its name."""

    designer: Designer
    licence: str
    icons: Mapping[str, Mapping]
    aliases: Mapping[str, Mapping]
    names_by_code: Mapping[str, str]
    width: int
    height: int

    @classmethod
    def read(cls, designer: Designer, archive: Path) -> IconSet:
        icons = _member(archive, "icons.json")
        return cls(
            designer=designer,
            licence=_member(archive, "info.json")["license"]["spdx"],
            icons=icons["icons"],
            aliases=icons.get("aliases", {}),
            names_by_code=_member(archive, "chars.json"),
            width=icons.get("width", 16),
            height=icons.get("height", 16),
        )

    def find(self, code: str, names: Sequence[str]) -> str | None:
        """Return the name of an emoji in this icon set, or None if the icon set does not contain the emoji.

        Args:
            code: Unicode code points of the emoji as hexadecimal numbers, joined by hyphens.
            names: names of the emoji in other icon sets, which are used only if this icon set does not list code
                points.
        """
        if self.names_by_code:
            return self.names_by_code.get(code)
        spellings = [name.replace("-", "") if self.designer.name == "fxemoji" else name for name in names]
        return next((name for name in spellings if name in self.icons or name in self.aliases), None)

    def svg(self, name: str) -> str:
        """Return the SVG document of the icon ``name``.

        If ``name`` is an alias of another icon, the SVG document of the other icon is returned. An alias that rotates
        or flips the other icon is not supported, because no concept has such an alias.
        """
        if name not in self.icons:
            name = self.aliases[name]["parent"]
        icon = self.icons[name]
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )


def _member(archive: Path, name: str) -> dict:
    """Return the content of the JSON file ``name`` in the archive of an npm package.

    Raises:
        ValueError: the archive is missing or damaged, or does not contain the file.
    """
    try:
        with tarfile.open(archive) as tar, tar.extractfile(f"package/{name}") as member:
            return json.load(member)
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise ValueError(f"{archive} has no readable {name} ({error}): download it with `npm pack`.") from None


def fetch(folder: Path) -> None:
    """Downloads the npm packages that are missing in ``folder`` with ``npm pack``, in pinned versions."""
    for package in (UNICODE_NAMES, *(designer.scoped for designer in DESIGNERS)):
        if archive_path(folder, package).exists():
            continue
        try:
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise ValueError(
                f"npm pack {package} failed ({error}): install Node.js with npm, or pass --packages."
            ) from None


def archive_path(folder: Path, package: str) -> Path:
    return folder / (package.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz")


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"['’]", "", name.lower())).strip("-")


def code_points(emoji: str) -> str:
    return "-".join(f"{ord(character):x}" for character in emoji if ord(character) != 0xFE0F)


def render(svg: str, size: int) -> Image.Image:
    """Return an SVG document as an RGBA image of ``size`` x ``size`` pixels.

    A drawing that is not square is centered on a transparent square.
    """
    import resvg_py  # imported here, because only this function needs the SVG renderer

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (size, size))
    square.alpha_composite(drawing, ((size - drawing.width) // 2, (size - drawing.height) // 2))
    return square


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def read_concepts(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table of concepts (``.csv``).

    Raises:
        ValueError: the file or a required column is missing, or the table contains no rows.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: pass an existing table of concepts with --concepts.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = set(rows[0]) if rows else set()
    if missing := [name for name in ("emoji", "unicode_name", "name", "phrase") if name not in columns]:
        raise ValueError(
            f"{path} has no column {missing[0]!r}, or no row: write a table with the columns of {CONCEPTS_TABLE}."
        )
    return rows


def drawings(concepts: Sequence[Mapping[str, str]], packages: Path, size: int) -> Iterator[dict]:
    """Yield one table row per drawing. Each drawing belongs to a random split: ``corpus``, ``reference`` or ``fid``.

    Args:
        concepts: rows of the table of concepts.
        packages: folder of the npm packages.
        size: side of the rendered drawings in pixels.
    """
    names = _member(archive_path(packages, UNICODE_NAMES), "data-by-emoji.json")
    sets = [IconSet.read(designer, archive_path(packages, designer.scoped)) for designer in DESIGNERS]
    generator = np.random.default_rng(SEED)
    image_id = 0
    for concept_id, concept in enumerate(tqdm(concepts, desc="drawings", unit="concept")):
        icons_of_concept = _icons(concept["emoji"], concept["unicode_name"], sets)
        group = names.get(concept["emoji"], {}).get("group")
        if len(icons_of_concept) < MIN_DESIGNERS or group not in GROUPS:
            raise ValueError(
                f"{concept['name']!r} has drawings of {len(icons_of_concept)} designers and the group {group!r}: "
                f"choose a concept with {MIN_DESIGNERS} designers or more and one of the groups {', '.join(GROUPS)}."
            )
        for (icons, icon), split in zip(icons_of_concept, _splits(len(icons_of_concept), generator), strict=True):
            yield {
                "image_id": image_id,
                "image": {"bytes": _png(render(icons.svg(icon), size)), "path": None},
                "concept": concept["name"],
                "concept_id": concept_id,
                "phrase": concept["phrase"],
                "emoji": concept["emoji"],
                "unicode_name": concept["unicode_name"],
                "group": group,
                "designer": icons.designer.name,
                "style": icons.designer.style,
                "licence": icons.licence,
                "package": icons.designer.scoped,
                "split": split,
            }
            image_id += 1


def _icons(emoji: str, unicode_name: str, sets: Sequence[IconSet]) -> list[tuple[IconSet, str]]:
    code = code_points(emoji)
    names = [slug(unicode_name)]
    names += [icons.names_by_code[code] for icons in sets if code in icons.names_by_code]
    matches = ((icons, icons.find(code, names)) for icons in sets)
    return [(icons, icon) for icons, icon in matches if icon is not None]


def _splits(count: int, generator: np.random.Generator) -> list[str]:
    """Return the name of the split of each of the ``count`` drawings of a concept, in random order.

    Three drawings are in the split ``reference``, one or two drawings are in the split ``fid``, and all other drawings
    are in the split ``corpus``.
    """
    fid = max(1, count - 7)
    splits = ["reference"] * REFERENCES + ["fid"] * fid + ["corpus"] * (count - REFERENCES - fid)
    return [splits[k] for k in generator.permutation(count)]


def caption_counts(concepts: int, generator: np.random.Generator) -> np.ndarray:
    """Return the number of captions to generate for each concept, ``int [concepts]``.

    The numbers of captions are evenly spaced on a log scale from ``MIN_CAPTIONS`` to ``MAX_CAPTIONS``, and are assigned
    to the concepts at random.
    """
    counts = np.rint(np.geomspace(MIN_CAPTIONS, MAX_CAPTIONS, concepts)).astype(int)
    return counts[generator.permutation(concepts)]


def captions(rows: Sequence[Mapping]) -> dict[str, list]:
    """Return the columns of ``captions.parquet``: captions of the drawings in the split ``corpus``, in random order.

    For each concept, every pair of drawing and augmentation seed is used once before any pair is used a second time. An
    augmentation seed is an integer that determines the background, size, position and mirroring of a drawing.
    """
    generator = np.random.default_rng(SEED + 1)
    by_concept: dict[int, list[Mapping]] = {}
    for row in rows:
        if row["split"] == "corpus":
            by_concept.setdefault(row["concept_id"], []).append(row)
    templates, shares = zip(*TEMPLATES, strict=True)
    table: dict[str, list] = {"image_id": [], "augmentation_seed": [], "caption": []}
    for concept_id, count in enumerate(caption_counts(len(by_concept), generator)):
        pairs = [(row, seed) for row in by_concept[concept_id] for seed in range(AUGMENTATIONS)]
        order = np.concatenate([generator.permutation(len(pairs)) for _ in range(-(-count // len(pairs)))])[:count]
        for pair, template in zip(order, generator.choice(len(templates), count, p=shares), strict=True):
            row, seed = pairs[pair]
            background = Augmentation.from_seed(seed).background
            table["image_id"].append(row["image_id"])
            table["augmentation_seed"].append(seed)
            table["caption"].append(
                templates[template].format(phrase=row["phrase"], style=row["style"], background=background)
            )
    order = generator.permutation(len(table["caption"]))
    return {name: [column[k] for k in order] for name, column in table.items()}


def _write(dataset: datasets.Dataset, path: Path) -> None:
    """Writes a Parquet file with ``datasets`` features in its metadata, so that ``load_dataset`` decodes the images."""
    table = dataset.data.table.combine_chunks()
    atomic_write(path, lambda part: pq.write_table(table, part, compression="zstd", compression_level=9))


def build(concepts: Path, output: Path, packages: Path, size: int = 64) -> None:
    """Builds the emoji corpus and writes its files to ``output``.

    Args:
        concepts: table of concepts (``.csv``).
        output: folder to which the files of the corpus are written.
        packages: folder of the npm packages.
        size: side of the drawings in pixels.
    """
    rows = list(drawings(read_concepts(concepts), packages, size))
    features = datasets.Features(
        {
            name: datasets.Image() if name == "image" else datasets.Value("int32" if name.endswith("_id") else "string")
            for name in rows[0]
        }
    )
    for split in SPLITS:
        part = [row for row in rows if row["split"] == split]
        _write(datasets.Dataset.from_list(part, features=features), output / f"drawings-{split}.parquet")
    table = captions(rows)
    types = {"image_id": "int32", "augmentation_seed": "int32", "caption": "string"}
    features = datasets.Features({name: datasets.Value(kind) for name, kind in types.items()})
    _write(datasets.Dataset.from_dict(table, features=features), output / "captions.parquet")
    write_concepts(output)
    print(f"{len(rows)} drawings, {len(table['caption'])} captions in {output}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.data.build_emoji",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--concepts", type=Path, default=CONCEPTS_TABLE, help="concept table (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the corpus (default: %(default)s)")
    parser.add_argument("--packages", type=Path, help="folder of packages from `npm pack` (default: download)")
    parser.add_argument("--size", type=int, default=64, help="side of a drawing in pixels (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.size < 1:
            raise ValueError(f"--size {options.size}: must be an integer >= 1, the side in pixels.")
        if options.packages is not None and not options.packages.is_dir():
            raise ValueError(
                f"{options.packages} is not a folder: pass a folder of packages with --packages, or omit it."
            )
        with tempfile.TemporaryDirectory() as temporary:
            packages = options.packages or Path(temporary)
            fetch(packages)
            build(options.concepts, options.output, packages, options.size)
    except (ValueError, CannotWrite) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
