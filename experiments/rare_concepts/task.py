"""The rare-concepts experiment (Table 3 of the RNRI paper): generates and classifies images of rare concepts."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.loggers import Logger

from experiments.rare_concepts.arms_experiment import REAL, ArmsExperiment, ExperimentStage
from experiments.rare_concepts.image_stage import ImageStage
from rnri.validation import dataclass


@dataclass(kw_only=True)
class RareConceptsExperiment(ArmsExperiment):
    """The task of ``experiment=rare_concepts``, with one row of results per arm (pipeline) and group of concepts."""

    def stages(self) -> list[ExperimentStage]:
        return [ImageStage(self.context)]

    def report(self, loggers: Sequence[Logger]) -> float:
        """Write the results; return the accuracy of the last arm (pipeline) on the rarest group of concepts."""
        from experiments.rare_concepts.report import RealScores, write_report

        evaluator = self.evaluator
        rows = write_report(
            self.context.run_dir,
            evaluator.arms(),
            RealScores(evaluator.real_row, evaluator.real_features()),
            self.context.settings(),
            loggers=loggers,
            seed=self.seed,
            step=self.num_units,
        )
        return [row["accuracy"] for row in rows if row["method"] != REAL and row["bucket"] != "total"][-1]
