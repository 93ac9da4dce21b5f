"""Small data sets and checkpoints in real formats: ImageNet as on the hub or in folders, COCO captions.

``python -m tests.fakes FOLDER`` writes ImageNet's classes with generated images, their counts, a random classifier and
a random Stable Diffusion model of reduced width, for trying out commands.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from experiments.counting.imagenet_counts import imagenet_classes


def jpeg_image(class_index: int, number: int, side: int = 20) -> bytes:
    """Return a JPEG file with one color per class, whose upper rows are darker depending on the image's number."""
    color = np.array([(37 * class_index) % 256, (91 * class_index + 40) % 256, (53 * class_index + 90) % 256], np.uint8)
    image = np.broadcast_to(color, (side, side + 4, 3)).copy()
    image[: 1 + number % side] //= 2
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return file.getvalue()


def file_name(class_index: int, number: int, split: str) -> str:
    """Return a file name as in ImageNet: those of training images contain the WordNet id."""
    wnid = imagenet_classes()[class_index].wnid
    return f"{wnid}_{number}.JPEG" if split == "train" else f"ILSVRC2012_val_{1000 * class_index + number:08d}.JPEG"


def imagenet_tables(
    folder: Path, classes: Iterable[int], train: int, validation: int, *, files: int = 2, group: int = 7
) -> Path:
    """Write Parquet files ``data/SPLIT-00000-of-00002.parquet`` as on the hub, shuffled; ``group`` rows each."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[c.name for c in imagenet_classes()])}
    )
    image_type = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": image_type, "label": pa.int64()}).with_metadata(features.arrow_schema.metadata)
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", train), ("validation", validation)):
        rows = [(class_index, number) for class_index in classes for number in range(count)]
        rows = [rows[k] for k in np.random.default_rng(0).permutation(len(rows))]
        for part in range(files):
            part_rows = rows[part::files]
            names = [file_name(*row, split) for row in part_rows]
            if split == "train":  # the hub's copies repeat the WordNet id
                names = [f"{Path(name).stem}_{name.split('_')[0]}.JPEG" for name in names]
            images = [{"bytes": jpeg_image(*row), "path": name} for row, name in zip(part_rows, names, strict=True)]
            labels = [class_index for class_index, _ in part_rows]
            table = pa.table({"image": pa.array(images, image_type), "label": labels}, schema)
            path = folder / "data" / f"{split}-{part:05d}-of-{files:05d}.parquet"
            pq.write_table(table, path, row_group_size=group)
    return folder


def imagenet_folders(folder: Path, classes: Iterable[int], train: int, validation: int) -> Path:
    """Write the same images in one folder per WordNet id."""
    for split_folder, split, count in (("train", "train", train), ("val", "validation", validation)):
        for class_index in classes:
            class_folder = folder / split_folder / imagenet_classes()[class_index].wnid
            class_folder.mkdir(parents=True)
            for number in range(count):
                path = class_folder / file_name(class_index, number, split)
                path.write_bytes(jpeg_image(class_index, number))
    return folder


def imagenet_count_table(path: Path) -> Path:
    """Write counts by WordNet id, decreasing from 20 million to 200."""
    lines = [f"{c.wnid}\t{int(2e7 * 10 ** (-c.index / 200))}" for c in imagenet_classes()]
    path.write_text("\n".join(lines) + "\n")
    return path


def captions(folder: Path, texts: Sequence[str]) -> Path:
    """Write ``annotations.json`` in COCO's format, with two captions per image, and the folder ``images``."""
    (folder / "images").mkdir(parents=True)
    images = []
    annotations = []
    for k, text in enumerate(texts):
        images.append({"id": 100 - k, "file_name": f"{k:012d}.jpg", "height": 20, "width": 24})
        annotations.append({"image_id": 100 - k, "id": 2 * k + 1, "caption": "another caption"})
        annotations.append({"image_id": 100 - k, "id": 2 * k, "caption": f"{text}\n"})
        (folder / "images" / f"{k:012d}.jpg").write_bytes(jpeg_image(k, k))
    content = {"images": images, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def timm_folder(folder: Path) -> Path:
    """Save a small random classifier of ImageNet's 1,000 classes in timm's format."""
    import timm
    import torch
    from timm.models import save_for_hf

    narrow = {"channels": [8, 8, 16, 16], "stem_width": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("resnet10t", num_classes=len(imagenet_classes()), **narrow)
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, 32, 32)}
    save_for_hf(network, folder, model_args=narrow, safe_serialization=True)
    return folder


def standin(folder: Path, classes: int, images: int = 4) -> None:
    """Write the data and the networks of the commands in ``docs/guides/imagenet_on_a_cluster.md``."""
    from tests.pipelines import tiny_stable_diffusion

    imagenet_tables(folder / "imagenet", range(classes), images, 1)
    imagenet_count_table(folder / "counts.tsv")
    timm_folder(folder / "classifier")
    tiny_stable_diffusion().save_pretrained(folder / "model")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=4, help="training images per class")
    options = parser.parse_args()
    standin(options.folder, options.classes, options.images)
    print(f"{options.classes} classes, counts and a model are in {options.folder}")


if __name__ == "__main__":
    main()
