"""Checks that reject broken or unsupported checkpoints, pipelines and inputs early, one module per subject."""
