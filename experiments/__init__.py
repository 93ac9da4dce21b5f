"""Experiments with rnri, nao and seedselect: Lightning tasks, evaluation and reports."""

from experiments.config.output import replace_unencodable
from experiments.config.project import register

register()  # configs that other programs compose also refer to files of the project
replace_unencodable()  # every command imports this package
