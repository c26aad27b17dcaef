"""Medians of interleaved runs, shared by all benchmarks."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def medians(ways: Mapping[str, Callable[[], object]], seconds: float, rounds: int = 3
            ) -> dict[str, float]:
    """Median time in ms of each function.

    Each function runs once untimed. Then the functions take turns, so that other load on the
    machine slows all of them alike, for `seconds` and for at least `rounds` rounds. On a GPU
    each run is timed until its kernels have finished.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for function in ways.values():
        function()
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < seconds:
        for name, function in ways.items():
            wait()
            begin = time.perf_counter()
            function()
            wait()
            times[name].append(1e3 * (time.perf_counter() - begin))
        done += 1
    return {name: statistics.median(spent) for name, spent in times.items()}
