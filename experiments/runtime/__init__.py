"""Execution of a run: processes and launchers, distribution of work to processes, resuming, loggers and progress."""
