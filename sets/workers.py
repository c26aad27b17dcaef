"""Data workers: how many a machine can have, and how they end with their parent process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def follow_parent(worker: int = 0, sigterm: signal.Handlers = signal.SIG_IGN) -> None:
    """Leave signals to the process that started this worker, and end when that process ends.

    To be called in the worker. Without this, the worker of a killed process waits for ever for
    work: it has inherited both ends of its own pipe.

    Args: worker: its number, unused; the DataLoader calls its worker_init_fn with it. sigterm: what
    SIGTERM does; a worker of multiprocessing.Pool has to obey it (SIG_DFL).
    """
    signal.signal(signal.SIGTERM, sigterm)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(multiprocessing.parent_process().pid,),
                     daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
