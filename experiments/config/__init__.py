"""Command line and configs: validation, error messages, help, and the run's folder.

No module of this package imports PyTorch when it is imported, so that errors and help are printed quickly.
"""
