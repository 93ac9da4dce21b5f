"""The class ``Run``, with which notebooks and scripts read the results, images and seeds of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

import nao
from rnri.validation import first_line


@dataclass(frozen=True, eq=False)
class GeneratedConcept:
    """The images of one concept that one method generated.

    Attributes:
        method: name of the method.
        concept: name of the concept.
        prompt: prompt of the images.
        images: ``uint8 [m,3,H,W]``, the m images without NaN and infinity.
        seeds: ``[n,C,h,w]``, the seeds (initial latents) of all n images; NaN for an image with NaN or infinity.
        record: durations in seconds (``t_init``, ``t_opt``), and one dictionary of measured values per image
            (``samples``).
    """

    method: str
    concept: str
    prompt: str
    images: Tensor
    seeds: Tensor
    record: dict[str, Any]


class Run:
    """Reads the folder of a run.

    ::

        run = Run("runs/rare_concepts")
        run.rows                                            # pandas table of the results
        run.generated("seedselect_rnri", "canoe").images    # uint8 [n,3,H,W]
        run.reference_seeds("canoe")                        # seeds of the reference images, by inversion method
        run.centroid("canoe", "FixedPoint")                 # NAO centroid of the seeds of the reference images

    Args:
        folder: the ``run_dir`` of a finished run.

    Raises:
        FileNotFoundError: the folder has no ``config.yaml``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "config.yaml").is_file():
            raise FileNotFoundError(
                f"{self.folder} is not the folder of a run, because it has no config.yaml: pass the run_dir of a run."
            )

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config of the run."""
        return yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))

    @cached_property
    def results(self) -> dict[str, Any]:
        """The content of ``results.json``.

        Raises:
            FileNotFoundError: the run is not finished.
            ValueError: the file is damaged.
        """
        path = self.folder / "results.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist, because the run is not finished: repeat the command of the run."
            )
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read as JSON ({first_line(error)}): repeat the command of the run."
            ) from None
        if not isinstance(results, dict) or not results.get("rows"):
            raise ValueError(f"{path} contains no rows of results: repeat the command of the run.")
        return results

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The rows of the results table, with all columns."""
        return pd.DataFrame(self.results["rows"])

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The measured values of each image, with one row per image."""
        return pd.read_parquet(self.folder / "samples.parquet")

    @cached_property
    def units(self) -> pd.DataFrame:
        """The files of generated images, with the columns ``method``, ``concept``, ``prompt`` and ``path``.

        If a method was run with several settings in the same folder, only the files of the latest settings are listed.
        """
        rows = []
        for arm in sorted(path for path in (self.folder / "units").glob("*") if path.is_dir()):
            paths = _newest_folder(arm)
            for path in paths:
                with safe_open(path, framework="pt") as file:
                    concept, prompt = [*file.metadata()["unit"].split("\n"), ""][:2]
                rows.append({"method": arm.name, "concept": concept, "prompt": prompt, "path": path})
        return pd.DataFrame(rows, columns=["method", "concept", "prompt", "path"])

    def generated(self, method: str, concept: str) -> GeneratedConcept:
        """Return the images and seeds that ``method`` generated for ``concept`` in a rare-concepts experiment.

        Raises:
            KeyError: the run has no such method or concept.
        """
        units = self.units
        row = units[(units.method == method) & (units.concept == concept)]
        if row.empty:
            raise KeyError(
                f"{self.folder} has no images of concept {concept!r} by method {method!r}: choose a row of Run.units."
            )
        prompt, path = row.iloc[0][["prompt", "path"]]
        with safe_open(path, framework="pt") as file:
            images, seeds = file.get_tensor("images"), file.get_tensor("seeds")
            record = json.loads(file.metadata()["record"])
        return GeneratedConcept(method, concept, prompt, images, seeds, record)

    @cached_property
    def inverted_seeds(self) -> pd.DataFrame:
        """The files of inverted seeds, with the columns ``prompt``, ``inverter``, ``image`` and ``path``.

        The column ``inverter`` contains the class name of the solver, or of the inversion method if it has no solver.
        The column ``image`` contains a hash of the image.
        """
        rows = []
        for path in sorted((self.folder / "seeds").glob("*/*.safetensors")):
            with safe_open(path, framework="pt") as file:
                key = json.loads((file.metadata() or {}).get("key", "{}"))
            if "method" in key:
                row = {name: key[name] for name in ("prompt", "image")}
                rows.append(row | {"inverter": _method_name(key["method"]), "path": path})
        return pd.DataFrame(rows, columns=["prompt", "inverter", "image", "path"])

    def reference_seeds(self, concept: str) -> dict[str, Tensor]:
        """Return the inverted seeds of the R reference images of a concept.

        The returned dict maps each value of the column ``inverter`` of :attr:`inverted_seeds` to a tensor
        ``[R,C,h,w]``.
        """
        prompts = set(self.units[self.units.concept == concept].prompt)
        seeds = self.inverted_seeds
        seeds = seeds[seeds.prompt.isin(prompts)]
        return {
            str(inverter): torch.stack([_read_seed(path) for path in group.path])
            for inverter, group in seeds.groupby("inverter")
        }

    def centroid(self, concept: str, inverter: str) -> Tensor:
        """Return the centroid ``[C,h,w]`` (``nao.centroid``) of the inverted seeds of a concept's reference images.

        Raises:
            KeyError: the run has no seeds of the concept that were inverted with ``inverter``.
        """
        seeds = self.reference_seeds(concept)
        if inverter not in seeds:
            raise KeyError(
                f"inverter={inverter!r}: the run has no seeds of the concept {concept!r} by this inverter; choose one "
                f"of {', '.join(seeds)}."
            )
        return nao.centroid(seeds[inverter]).point


def _newest_folder(arm: Path) -> list[Path]:
    """Return the files of the most recently modified subfolder of ``arm``, sorted by name.

    ``arm`` is the folder with the generated images of one method. The folder has one subfolder per combination of
    settings with which the method was run. The most recently modified subfolder is the subfolder that contains the most
    recently modified file.
    """
    folders = [folder for folder in arm.iterdir() if any(folder.glob("[!.]*.safetensors"))]
    if not folders:
        return []
    newest = max(folders, key=lambda folder: max(path.stat().st_mtime for path in folder.glob("[!.]*.safetensors")))
    return sorted(newest.glob("[!.]*.safetensors"))


def _method_name(method: dict[str, Any]) -> str:
    """Return the class name of the solver of an inversion method, or of the method if it has no solver."""
    return method.get("solver", method)["_class_"]


def _read_seed(path: Path) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("seed")
