"""Tools for developers of this project."""

import experiments  # noqa: F401  # replaces printed characters that the terminal lacks
