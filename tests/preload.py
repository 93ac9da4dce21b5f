"""Imports of a run, for the server of forked processes."""

import experiments.inversion.task
import experiments.rare_concepts  # noqa: F401
import rnri.api
import rnri.models.diffusion  # noqa: F401
