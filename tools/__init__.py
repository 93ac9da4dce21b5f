"""Tools for developers. The packages do not import them."""
