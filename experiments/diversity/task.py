"""Experiment on seed diversity: measures the variety and the accuracy of n images that are generated from one prompt.

Few-step models generate similar images for different seeds of a prompt. Each arm (compared pipeline) chooses or
optimizes the n seeds of a prompt jointly, so that the images differ. The evaluation classifier predicts the concept of
each image, and its features measure the variety of the n images. No arm optimizes the features of the evaluation
classifier, so that the evaluation is independent of the optimization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from lightning.pytorch.loggers import Logger
from torch import Tensor

from experiments.diversity.arm import DiversityArm
from experiments.rare_concepts.arms_experiment import ArmsExperiment, ExperimentStage
from experiments.rare_concepts.data import ConceptBatch
from experiments.rare_concepts.image_stage import ImageStage
from experiments.rare_concepts.module import RareConceptModule
from rnri import Schedule
from rnri.models.sampling import to_state_dtype
from rnri.validation import IntAtLeast2, dataclass
from seedselect import BestOf, GroupSelect, LocalSearch, SeedSelect, Targets, Trajectory
from seedselect.noise import pink_noise


class DiversityModule(RareConceptModule):
    """Lightning module that generates the images of all arms.

    Each call of ``predict_step`` generates all images of one concept with one arm (compared pipeline).
    """

    def _arm(self, batch: ConceptBatch) -> DiversityArm:
        arm = self.context.arms[batch.arm]
        assert isinstance(arm, DiversityArm)
        return arm

    def _initial_seeds(self, batch: ConceptBatch) -> Tensor:
        seeds = super()._initial_seeds(batch)
        exponent = self._arm(batch).noise_exponent
        return pink_noise(seeds, exponent) if exponent else seeds

    def _optimize(self, seeds: Tensor, batch: ConceptBatch, targets: Targets) -> tuple[Tensor, Tensor, list[dict]]:
        seeds, latents, records = super()._optimize(seeds, batch, targets)
        if self._arm(batch).one_step:
            _, latents, _ = self._sample(seeds, batch, targets)
        return seeds, latents, records

    def _trajectory(self, batch: ConceptBatch, targets: Targets) -> Trajectory:
        arm = self._arm(batch)
        if not arm.one_step:
            return super()._trajectory(batch, targets)
        predictor = self.context.networks.model.predictor(self._prompts(batch), arm.guidance_of_sampling)
        schedule = self._schedule(arm)

        def clean_prediction(seeds: Tensor, rows: Tensor) -> list[Tensor]:
            latents = self._initial_latents(arm, seeds, targets, rows)
            return [predict_clean(latents, predictor.select(rows), schedule, stop_gradient=arm.stop_gradient)]

        return clean_prediction


def predict_clean(seeds: Tensor, predictor: Any, schedule: Schedule, *, stop_gradient: bool) -> Tensor:
    """Predict the clean latents ``[B,C,h,w]`` from ``seeds [B,C,h,w]`` with one network evaluation.

    Args:
        predictor: function that evaluates the denoising network, which predicts noise or velocity.
        schedule: the sampling schedule, whose first timestep is the timestep of the seeds.
        stop_gradient: whether the gradient treats the network's output as a constant.
    """
    z = to_state_dtype(seeds)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not stop_gradient):
        prediction = predictor(z, schedule.timestep(0))
    return schedule.clean_and_noise(0, z, prediction)[0].to(seeds.dtype)


def total_only(arm: str, bucket: str) -> dict[str, Any] | None:
    """Return the columns that identify the table row of an arm (pipeline) if ``bucket`` is ``total``, else None.

    ``total`` stands for the concepts of all frequency buckets.
    """
    return {"method": arm} if bucket == "total" else None


@dataclass(kw_only=True)
class DiversityExperiment(ArmsExperiment):
    """The task of ``experiment=diversity``, whose table has one row per arm (compared pipeline).

    Args:
        arms: dict from names to arms (compared pipelines). For every arm except the first, the report contains the
            differences of the metrics (this arm minus the first arm).
        samples: number n of images per concept.
    """

    arms: Annotated[Mapping[str, DiversityArm], MinLen(1)]
    samples: IntAtLeast2

    def __post_init__(self) -> None:
        for name, arm in self.arms.items():
            for loss in _losses(arm):
                if isinstance(loss, GroupSelect) and loss.group_size != self.samples:
                    raise ValueError(
                        f"task.arms.{name}: group_size must equal task.samples={self.samples}, the number of images "
                        f"per concept, got {loss.group_size}; set both to the same number."
                    )

    def stages(self) -> list[ExperimentStage]:
        return [ImageStage(self.context, total_only, ("method",), DiversityModule)]

    def report(self, loggers: Sequence[Logger]) -> float:
        """Write the report; return the mean Vendi score of the correct images of the last arm (pipeline)."""
        from experiments.diversity.report import evaluate_arm, write_report

        classifier = self.networks.classifier
        groups = {name: evaluate_arm(self.context, name, classifier) for name in self.context.arms}
        rows = write_report(
            self.context.run_dir,
            groups,
            self.context.settings(),
            loggers=loggers,
            seed=self.seed,
            step=self.num_units,
        )
        return rows[-1]["distinct"]


def _losses(arm: DiversityArm) -> list[SeedSelect]:
    """Return the objects in ``arm.select`` that compute the loss of the seeds."""
    select = arm.select
    if isinstance(select, BestOf):
        return [select.loss, *([select.refine] if select.refine else [])]
    if isinstance(select, LocalSearch):
        return [select.loss]
    return [] if select is None else [select]
