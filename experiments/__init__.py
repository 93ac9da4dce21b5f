"""Experiments with rnri, nao and seedselect: Lightning tasks, evaluation and reports."""

from experiments.config.project import register

register()  # configs that other programs compose also refer to files of the project
