"""Checks that reject broken or unsupported checkpoints, pipelines and inputs before a network runs."""
