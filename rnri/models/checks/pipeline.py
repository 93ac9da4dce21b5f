"""Checks of a pipeline before ``LatentDiffusion`` uses the pipeline."""

from __future__ import annotations

from rnri.models.checks.caches import check_no_cache
from rnri.models.checks.components import check_no_image_prompt
from rnri.models.checks.configs import check_pipeline_configs
from rnri.models.checks.tokenizers import check_tokenizers
from rnri.models.family import Family


def check_pipeline(family: Family) -> None:
    """Raise ValueError if images cannot be inverted with the pipeline of ``family``.

    Args:
        family: the model family object of the pipeline, as returned by ``family_of(pipeline)``, which checks that all
            required components exist.

    Raises:
        ValueError: the pipeline's components do not fit together, a value in their configs is invalid, its scheduler is
            not supported, its network has a cache, or a tokenizer is incomplete.
    """
    check_pipeline_configs(family.pipeline)
    family.check()
    check_no_image_prompt(family.network_name, family.network)
    check_no_cache(family.network_name, family.network)
    check_tokenizers(family.pipeline)
