"""The check of a pipeline before ``LatentDiffusion`` uses the pipeline."""

from __future__ import annotations

from rnri.models.checks.tokenizers import check_tokenizers
from rnri.models.family import Family


def check_pipeline(family: Family) -> None:
    """Raise ValueError if images cannot be inverted with the pipeline of ``family``.

    Args:
        family: the model family object of the pipeline, from ``family_of(pipeline)``; that function already checks
            that all required components exist.

    Raises:
        ValueError: the pipeline's components do not fit together, its scheduler is not supported, or a tokenizer is
            incomplete.
    """
    family.check()
    check_tokenizers(family.pipeline)
