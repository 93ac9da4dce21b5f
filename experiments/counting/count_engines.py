"""What runs the counting of shards: processes of this machine, or a Dask cluster.

Either gives an ``Executor``, and a function that makes an argument of many calls known to the workers once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

Workers = tuple[Executor, Callable[[Any], Any]]


@contextmanager
def processes(workers: int) -> Iterator[Workers]:
    """Processes of this machine, started afresh: forking one whose libraries run threads can hang."""
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent) as pool:
        try:
            yield pool, lambda argument: argument
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed; it would wait for work for ever."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def dask(workers: int, scheduler: str | None) -> Iterator[Workers]:
    """The Dask cluster whose scheduler has the address, or one of ``workers`` processes on this machine.

    The cluster's workers need this package installed, and must see the shards under the same names.
    ValueError if Dask is not installed or the scheduler does not answer.
    """
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError:
        raise ValueError("The engine dask is not installed: pip install 'dask[distributed]'.") from None
    if scheduler is None:
        local = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        with local as cluster, Client(cluster) as client:
            yield _workers(client)
        return
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as error:
        raise ValueError(f"No Dask scheduler answers at {scheduler} ({error}).") from None
    with client:
        yield _workers(client)


def _workers(client: Any) -> Workers:
    # In a list, because Dask would send the elements of a tuple one by one.
    return client.get_executor(pure=False), lambda argument: client.scatter([argument], broadcast=True)[0]
