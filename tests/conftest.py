"""Tests in several processes share the processor: each, and what it starts, has its part of the cores."""

import os

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:  # before PyTorch is imported, which reads it
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import experiments  # noqa: E402, F401  # makes ${project:...} known to the configs that tests compose
