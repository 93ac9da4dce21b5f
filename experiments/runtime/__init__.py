"""Execution of a run: processes and their launcher, leases on units, resuming, loggers and progress."""
