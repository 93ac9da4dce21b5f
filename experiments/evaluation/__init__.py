"""Evaluation of images: networks that score images, metrics, and the registries of metrics of all experiments.

This package does not import code of the experiments.
"""
