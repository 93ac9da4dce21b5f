"""Executors that count the captions of several Parquet files (shards) in parallel: local processes or a Dask cluster.

The context managers ``processes`` and ``dask`` yield an ``Executor`` and a function ``share``. An argument that many
submitted calls have in common is first passed to ``share``, and the return value of ``share`` is passed to the calls.
Dask then sends the argument to each worker only once.
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
"""An executor, and the function ``share``, which sends an argument of many submitted calls to each worker only once."""


@contextmanager
def processes(workers: int) -> Iterator[Workers]:
    """Context manager that starts ``workers`` local processes, and yields their executor and the function ``share``.

    The processes are started by ``spawn``, because a fork of a process with threads can deadlock.
    """
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_exit_with_parent) as pool:
        try:
            yield pool, lambda argument: argument
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _exit_with_parent() -> None:
    """End this worker process when the parent process dies; otherwise the worker would wait for work forever."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def dask(workers: int, scheduler: str | None) -> Iterator[Workers]:
    """Context manager that connects to a Dask cluster, and yields its executor and the function ``share``.

    A remote worker needs an installation of this package. A remote worker must also be able to read the Parquet files
    of captions under the same paths as this process.

    Args:
        workers: number of processes of the local cluster that is started if ``scheduler`` is None.
        scheduler: address of the scheduler of the cluster, such as ``tcp://host:8786``.

    Raises:
        ValueError: Dask is not installed, or the scheduler does not respond.
    """
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError:
        raise ValueError("Dask is not installed: pip install 'dask[distributed]'.") from None
    if scheduler is None:
        local = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        with local as cluster, Client(cluster) as client:
            yield _workers(client)
        return
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as error:
        raise ValueError(f"No Dask scheduler responds at {scheduler} ({error}): check --scheduler.") from None
    with client:
        yield _workers(client)


def _workers(client: Any) -> Workers:
    # The argument is passed as a list of one element, because Dask would send the elements of a tuple separately.
    return client.get_executor(pure=False), lambda argument: client.scatter([argument], broadcast=True)[0]
