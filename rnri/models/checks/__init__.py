"""Checks that reject broken or unsupported checkpoints before their weights are read."""
