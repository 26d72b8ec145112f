"""A GPU that is none: NumPy arrays, the host's clock and the engine that runs anywhere.

Everything of a measurement on a GPU runs as it is, except what a driver or a library of device arrays does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu import Gpu
from benchmarks.workload import host_random


class FakeArrays:
    name, counting = "numpy", "peak"

    def random(self, seed: int, shape: tuple[int, ...], dtype: str) -> Any:
        return host_random(seed, shape, dtype)

    def give_back(self) -> None:
        pass

    def zeros_like(self, array: Any) -> Any:
        return np.zeros_like(array)

    def fetch(self, array: Any) -> Any:
        return np.array(array)

    def used_bytes(self) -> int:
        return 1_000

    def peak_bytes(self) -> int:
        return 4_000

    def forget_peak(self) -> None:
        pass

    def copier(self, source: Any) -> Callable[[], object]:
        target = np.empty_like(source)
        return lambda: np.copyto(target, source)

    def multiplier(self, left: Any, right: Any) -> Callable[[], object]:
        wide = left.astype(np.float32), right.astype(np.float32)
        return lambda: wide[0] @ wide[1]


class FakeClock:
    """The log says in which order things were asked for."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._start = 0.0

    def flush(self) -> None:
        self.log.append("flush")

    def start(self) -> None:
        self.log.append("start")
        self._start = time.perf_counter()

    def stop(self) -> float:
        self.log.append("stop")
        return time.perf_counter() - self._start

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def pool_bytes(self) -> tuple[int, int]:
        return 10, 50

    def forget_peak(self) -> None:
        pass

    def meter(self) -> FakeMeter:
        return FakeMeter()

    def facts(self) -> dict[str, Any]:
        return {"name": "Imagined GPU", "driver": "1.2.3", "clocks": "not locked"}


class FakeMeter:
    """A GPU that always takes 300 W."""

    def joules(self) -> float:
        return 300.0 * time.perf_counter()


class FakeGpu(Gpu):
    """Calls are planned for the host, where its arrays really lie."""

    device = "cpu"

    def __init__(self) -> None:
        super().__init__(FakeArrays(), FakeClock())
