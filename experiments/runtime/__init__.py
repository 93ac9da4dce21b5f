"""How a run executes: processes and their launcher, leases on units of work, resuming, loggers and progress."""
