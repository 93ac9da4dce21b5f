"""Tools for developers of this project."""

import experiments  # noqa: F401  # the import makes `print` replace characters that the terminal cannot display
