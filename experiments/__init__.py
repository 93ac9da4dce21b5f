"""Experiments with rnri, nao and seedselect: Lightning tasks, evaluation and reports."""

from experiments.config.output import replace_unencodable
from experiments.config.project import register

# Every command of the project imports this package. Therefore the next two calls take effect in every command.
register()  # configs can refer to files of the repository as ${project:PATH}
replace_unencodable()  # characters that the encoding of the terminal does not contain are printed as `?`
