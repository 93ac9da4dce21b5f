"""Divide the CPU cores among the test processes, run slow files first, and register the resolvers of configs."""

import gc
import os

import pytest

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:  # PyTorch reads the variable when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import experiments  # noqa: E402, F401  # registers ${project:...}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the files with slow tests to the front, so that no process is left with a slow file at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Exclude the objects of the imported libraries from every later garbage collection."""
    gc.collect()
    gc.freeze()
