"""Medians of interleaved runs, shared by all benchmarks."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def medians(ways: Mapping[str, Callable[[], object]], seconds: float, rounds: int = 3
            ) -> dict[str, float]:
    """Median time in ms of each function, which runs once untimed before.

    The functions take turns, so that other load on the machine slows all of them alike, for
    `seconds` and for at least `rounds` rounds. A GPU finishes its kernels before a clock is read.
    On a CPU with one thread the time is the process's own, which other load hardly changes.
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    own = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if own else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for function in ways.values():
        function()
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < seconds:
        for name, function in ways.items():
            wait()
            begin = clock()
            function()
            wait()
            times[name].append(1e3 * (clock() - begin))
        done += 1
    return {name: statistics.median(spent) for name, spent in times.items()}


def table(title: str, ways: Mapping[str, Callable[[], object]], seconds: float) -> None:
    """Print the time of each function, and its ratio to that of the first."""
    print(title, flush=True)
    times = medians(ways, seconds)
    for name, spent in times.items():
        print(f"  {name:46}{spent:10.2f} ms{spent / next(iter(times.values())):8.3f}", flush=True)
