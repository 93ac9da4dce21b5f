"""The inputs and settings that are common to all stages of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.base import Networks
from experiments.cache.key import fingerprint_config
from experiments.cache.store import SeedStore, UnitStore
from experiments.data.concepts import Concept
from experiments.rare_concepts.arm import Arm
from experiments.rare_concepts.inversion_stage import InversionStage
from rnri import Schedule


@dataclass(frozen=True)
class RunContext:
    """The loaded inputs and the settings that are common to all stages of a run.

    Attributes:
        arms: dict from names to the compared arms (pipelines), in the order of the table.
        concepts: the selected concepts with their reference images.
        networks: the text-to-image model, CLIP and the evaluation classifier.
        run_dir: folder of the results and the cached images.
        steps: number of sampling steps of inversion and generation.
        samples: number of generated images per concept.
        references: number of reference images per concept.
        concepts_per_batch: number of concepts that are computed in one batch.
        gradient_checkpointing: whether the backward pass recomputes each sampling step.
        seed: random seed of the initial noise.
    """

    arms: Mapping[str, Arm]
    concepts: Sequence[Concept]
    networks: Networks
    run_dir: Path
    steps: int
    samples: int
    references: int
    concepts_per_batch: int
    gradient_checkpointing: bool
    seed: int

    @cached_property
    def schedule(self) -> Schedule:
        return self.networks.model.schedule(self.steps)

    def settings(self) -> dict[str, Any]:
        """Return the settings that are part of the cache key of all generated images."""
        return {
            **self.networks.cache_settings(self.seed),
            "clip": self.networks.clip_fingerprint,
            "steps": self.steps,
            "samples": self.samples,
            "references": self.references,
        }

    def units(self, arm: str) -> UnitStore:
        """Return the store (folder) of the generated images of an arm (pipeline).

        Each combination of settings has its own folder.
        """
        settings = self.settings() | {"arm": fingerprint_config(self.arms[arm])}
        return UnitStore(self.run_dir / "units" / arm, settings)

    def inversion_stage(self, arm: str) -> InversionStage | None:
        """Return the stage that inverts the reference images for an arm (pipeline).

        The result is None if the arm has no inverter.
        """
        inverter = self.arms[arm].inverter
        if inverter is None:
            return None
        return InversionStage(
            self.networks.model,
            inverter,
            fingerprint_config(inverter),
            self.schedule,
            self.arms[arm].guidance,
            SeedStore(self.run_dir / "seeds"),
            self.networks.numerics,
        )
