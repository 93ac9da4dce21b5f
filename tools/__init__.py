"""Tools for developers of this project. The packages of the project do not import the tools."""

import experiments  # noqa: F401  # the terminal may lack characters of the output
