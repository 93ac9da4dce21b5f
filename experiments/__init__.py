"""Experiments with rnri, nao and seedselect: Lightning tasks, evaluation and reports."""

from experiments.config.output import replace_unencodable
from experiments.config.project import register

register()  # defines ${project:PATH}, also for programs that compose the configs themselves
replace_unencodable()  # here, because every command imports this package
