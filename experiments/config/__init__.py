"""From the command line to a valid config: validation, errors, help, the run's folder. Imports no PyTorch."""
