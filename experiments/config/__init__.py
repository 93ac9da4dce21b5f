"""Command line and configs: validation, error messages, help, and the folder of a run.

Importing a module of this package does not import PyTorch, so that errors and help are printed quickly.
"""
