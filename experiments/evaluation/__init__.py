"""Evaluation of images: networks that score images, metrics, and the registries of metrics of all experiments.

The modules of this package import no experiment.
"""
