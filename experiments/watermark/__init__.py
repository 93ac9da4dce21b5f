"""Experiment on watermarks in seeds: compares how well inversion methods read watermarks from attacked images."""
