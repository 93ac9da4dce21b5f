"""Experiment on watermarks in seeds: how many bits of a watermark each inversion method reads from attacked images."""
