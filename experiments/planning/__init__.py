"""Estimates of the network evaluations, the duration, the disk space and the memory of a run before it starts."""
