"""Time and memory: what the clock and the operating system say, nothing more."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numba_sparse_attn import config

__all__ = [
    "Timing",
    "Usage",
    "current_memory",
    "interleave",
    "machine",
    "peak_memory",
    "reset_peak_memory",
    "summarize",
]

#: Seconds of rest between contenders: their idle threads spin for a while before they sleep.
REST = 0.03
#: Calls shorter than this are repeated within a turn.
BURST = 0.05


@dataclass(frozen=True)
class Timing:
    """Median and spread (quartiles and minimum) of repeated measurements, in seconds.

    `host` is the median of what the host needed to queue the same calls on a GPU.
    """

    median: float
    low: float
    high: float
    minimum: float
    repeats: int
    host: float | None = None

    def fields(self) -> dict[str, float | int]:
        """As row fields."""
        host = {} if self.host is None else {"host_seconds": self.host}
        return {
            "seconds": self.median,
            "seconds_low": self.low,
            "seconds_high": self.high,
            "seconds_min": self.minimum,
            "repeats": self.repeats,
            **host,
        }


@dataclass(frozen=True)
class Usage:
    """Memory of a call in bytes: what it still holds, the most at once, and by whose count."""

    held: int
    peak: int
    counted: str


def summarize(samples: list[float], *, host: list[float] | None = None) -> Timing:
    """Median, quartiles and minimum.

    >>> summarize([3.0, 1.0, 2.0]).median
    2.0
    """
    low, median, high = (float(value) for value in np.quantile(samples, [0.25, 0.5, 0.75]))
    queued = None if host is None else float(np.median(host))
    return Timing(median, low, high, min(samples), len(samples), queued)


def interleave(
    runners: Mapping[str, Callable[[], object]],
    *,
    seconds_each: float,
    fewest: int = 5,
    most: int = 60,
) -> dict[str, Timing]:
    """Time contenders in turns, A B C A B C, so that a slow moment of the machine hits all of them.

    A turn of a fast contender is a burst of calls after one that is not timed; it counts with the mean
    of the burst. Turns go on until every contender had its seconds, at least `fewest` of them.
    """
    bursts: dict[str, int] = {}
    for name, run in runners.items():
        run()
        start = time.perf_counter()
        run()
        bursts[name] = max(1, min(200, int(BURST / max(time.perf_counter() - start, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in runners}
    deadline = time.perf_counter() + seconds_each * len(runners)
    for turn in range(most):
        if turn >= fewest and time.perf_counter() >= deadline:
            break
        for name, run in runners.items():
            time.sleep(REST)
            if bursts[name] > 1:
                run()
            start = time.perf_counter()
            for _ in range(bursts[name]):
                run()
            samples[name].append((time.perf_counter() - start) / bursts[name])
    return {name: summarize(taken) for name, taken in samples.items()}


def _status_bytes(field: str) -> int | None:
    """A memory figure of this process from Linux's /proc, which starts at zero with every program.

    ``getrusage`` would not do: its maximum is inherited from the parent across exec.
    """
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def peak_memory() -> int | None:
    """Most memory that this process has held at once, in bytes; None where nobody says."""
    found = _status_bytes("VmHWM")
    if found is not None or sys.platform == "win32":
        return found
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def current_memory() -> int | None:
    """Memory that this process holds now, in bytes; None where nobody says."""
    return _status_bytes("VmRSS")


def reset_peak_memory() -> bool:
    """Let :func:`peak_memory` forget the past; False where that cannot be asked for."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return False
    return True


def machine() -> dict[str, str | int]:
    """The processor and the system; nothing that names the machine."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count() or 1,
        "threads": config.thread_count(),
        "system": platform.system(),
        "architecture": platform.machine(),
    }
