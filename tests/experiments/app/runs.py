"""A finished run to rate, written with the project's unit store."""

import json
from pathlib import Path

import pandas as pd
import torch

from experiments.cache.store import UnitStore

COLORS = {"plain": 40, "seedselect": 200}
CONCEPTS = ("camel", "owl")


def finished_run(folder: Path, methods=COLORS, lost=()) -> Path:
    """Two images per concept and method, of one gray level per method.

    Args:
        folder: folder of the run.
        methods: gray level of each method.
        lost: triples (method, concept, sample) whose image is not finite.
    """
    for method, color in methods.items():
        store = UnitStore(folder / "units" / method, {"method": method})
        for concept in CONCEPTS:
            finite = [(method, concept, k) not in lost for k in range(2)]
            images = torch.full((sum(finite), 3, 16, 16), color, dtype=torch.uint8)
            record = {"samples": [{"finite": is_finite} for is_finite in finite]}
            store.write(f"{concept}\na drawing of a {concept}\nhash", {"images": images}, record)
    (folder / "results.json").write_text(json.dumps({"rows": []}))
    pd.DataFrame({"method": list(methods)}).to_parquet(folder / "samples.parquet")
    return folder
