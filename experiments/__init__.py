"""Experiments with rnri, nao and seedselect: Lightning tasks, evaluation and reports."""

from experiments.config.output import replace_unencodable
from experiments.config.project import register

register()  # defines the resolver ${project:PATH} of the configs
replace_unencodable()  # every command of the project imports this package, and can then print to any terminal
