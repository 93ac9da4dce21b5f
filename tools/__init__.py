"""Tools for developers; nothing of the package imports them."""
