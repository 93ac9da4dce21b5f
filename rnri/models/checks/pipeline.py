"""The check that every pipeline passes before it is used."""

from __future__ import annotations

from rnri.models.checks.tokenizers import check_tokenizers
from rnri.models.family import Family


def check_pipeline(family: Family) -> None:
    """Reject a pipeline that cannot be inverted.

    Args:
        family: the family of the pipeline, from ``family_of(pipeline)``, which has checked that the required
            components exist.

    Raises:
        ValueError: components do not fit together, the scheduler is not supported, or a tokenizer is incomplete.
    """
    family.check()
    check_tokenizers(family.pipeline)
