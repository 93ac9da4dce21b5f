"""Imports of a run, for the server of forked processes."""

import experiments.inversion.task
import experiments.rare_concepts  # noqa: F401
import rnri.api  # noqa: F401
import rnri.models.diffusion  # noqa: F401
