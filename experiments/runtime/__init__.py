"""Execution of a run: processes and launchers, leases on units, resuming, loggers and progress."""
