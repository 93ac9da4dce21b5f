"""Divide the CPU cores among the test processes, and register the resolvers of configs."""

import os

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:  # PyTorch reads the variable when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import experiments  # noqa: E402, F401  # registers ${project:...}
