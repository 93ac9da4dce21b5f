"""Tools for developers of this project. The packages of the project do not import this package."""

import experiments  # noqa: F401  # the terminal may lack characters of the output
