"""A finished run to be rated, written by the project's own stores."""

import json
from pathlib import Path

import pandas as pd
import torch

from experiments.cache.store import UnitStore

COLOURS = {"plain": 40, "seedselect": 200}
CONCEPTS = ("camel", "owl")


def finished_run(folder: Path, ways=COLOURS, lost=()) -> Path:
    """Two images a concept and method, of one color a method; ``lost`` are (method, concept, sample)."""
    for method, color in ways.items():
        store = UnitStore(folder / "units" / method, {"method": method})
        for concept in CONCEPTS:
            finite = [(method, concept, k) not in lost for k in range(2)]
            images = torch.full((sum(finite), 3, 16, 16), color, dtype=torch.uint8)
            record = {"samples": [{"finite": each} for each in finite]}
            store.write(f"{concept}\na drawing of a {concept}\nhash", {"images": images}, record)
    (folder / "results.json").write_text(json.dumps({"rows": []}))
    pd.DataFrame({"method": list(ways)}).to_parquet(folder / "samples.parquet")
    return folder
