"""The GPU as a place to measure on: arrays, clock, memory and what the machine says of itself.

Time on a GPU is taken by events that the driver puts into the default stream before and after a batch of
calls, which is long enough that one event's grain of half a microsecond does not count. Before each batch
256 MB are written, more than any level-two cache holds, so that nobody finds his inputs there because the
last turn was his. They are written so often that the host is done queueing the batch when the first of it
begins to run: what is timed is the GPU. The host's own time for a call is kept beside it, and where that is
the longer of the two, it is what a caller waits for who calls one after the other.
"""

from __future__ import annotations

import gc
import math
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol, TypeVar

from . import measure
from .device_arrays import COUNTED, DeviceArrays, find_arrays
from .energy import EnergyMeter, find_meter
from .rows import Row
from .workload import Array

__all__ = ["ENERGY_SECONDS", "DriverClock", "EventClock", "Gpu", "find_gpu", "why_no_gpu"]

#: More than the level-two cache of any GPU.
FLUSH_BYTES = 256 << 20
#: A batch of calls takes about so long, on the GPU and to queue, and is at most so many: the driver's queue
#: holds 1024 launches.
BATCH, QUEUEING = 1e-3, 3e-3
MOST_CALLS = 100
#: The head start of the host, in units of its time for a batch, and the most writes that make it.
HEAD_START, MOST_FLUSHES = 1.5, 256
#: Energy is taken over so long: its counter moves some ten times a second.
ENERGY_SECONDS = 5.0
#: A batch of a contender on streams of its own, which the host times and whose queueing is in that time.
WAITED_BATCH = 20e-3
#: Seconds of calls before the first timed one: an idle GPU runs at a fifth of its clock.
WARM = 0.05
FEWEST, MOST = 7, 100

_Result = TypeVar("_Result")


class EventClock(Protocol):
    """The clock of the default stream and the driver's own count of memory."""

    def flush(self) -> None:
        """Queue a write of more than the level-two cache holds."""

    def start(self) -> None:
        """Queue the event before."""

    def stop(self) -> float:
        """Queue the event after and wait for it: seconds between the two."""

    def synchronize(self) -> None:
        """Wait for everything that is queued."""

    def pool_bytes(self) -> tuple[int, int]:
        """The driver's memory pool, where our engine keeps patterns: used now, most since the last peak."""

    def forget_peak(self) -> None:
        """Start a new peak."""

    def facts(self) -> Row:
        """Name, driver, size."""

    def meter(self) -> EnergyMeter | None:
        """Who counts the GPU's energy."""


class DriverClock:
    """GPU 0 by the driver's functions, so that it is the same for every library of arrays."""

    def __init__(self) -> None:
        from cuda.core import Device

        from numba_sparse_attn.cuda import streams

        Device(0).set_current()
        self._call = streams.call
        self._driver = streams.driver()
        self._events = [self._call("cuEventCreate", 0) for _ in range(2)]
        self._scratch = self._call("cuMemAlloc", FLUSH_BYTES)
        self._pool = self._call("cuDeviceGetMemPool", 0)
        self._turn = 0

    def flush(self) -> None:
        """Another byte each time: equal data might be compressed away."""
        self._turn = (self._turn + 1) % 256
        self._call("cuMemsetD8Async", self._scratch, self._turn, FLUSH_BYTES, 0)

    def start(self) -> None:
        """The event before."""
        self._call("cuEventRecord", self._events[0], 0)

    def stop(self) -> float:
        """The event after."""
        self._call("cuEventRecord", self._events[1], 0)
        self._call("cuEventSynchronize", self._events[1])
        return float(self._call("cuEventElapsedTime", *self._events)) * 1e-3

    def synchronize(self) -> None:
        """All streams."""
        self._call("cuCtxSynchronize")

    def pool_bytes(self) -> tuple[int, int]:
        """Of the pool that ``cuda.core`` allocates from."""
        names = self._driver.CUmemPool_attribute
        used, high = (
            int(self._call("cuMemPoolGetAttribute", self._pool, attribute))
            for attribute in (names.CU_MEMPOOL_ATTR_USED_MEM_CURRENT, names.CU_MEMPOOL_ATTR_USED_MEM_HIGH)
        )
        return used, high

    def forget_peak(self) -> None:
        """The driver takes zero for "now"."""
        attribute = self._driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_USED_MEM_HIGH
        self._call("cuMemPoolSetAttribute", self._pool, attribute, self._driver.cuuint64_t(0))

    def facts(self) -> Row:
        """What the driver and nvidia-smi say; nobody here sets clocks, so rows say that they are free."""
        attributes = self._driver.CUdevice_attribute
        count = self._call("cuDeviceGetAttribute", attributes.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 0)
        name = bytes(self._call("cuDeviceGetName", 256, 0)).split(b"\0")[0].decode()
        cuda = int(self._call("cuDriverGetVersion"))
        return {
            "name": name,
            "driver": _driver_release(),
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
            "multiprocessors": int(count),
            "memory_bytes": int(self._call("cuDeviceTotalMem", 0)),
            "clocks": "not locked",
            "compiler": {name: version(name) for name in ("numba-cuda", "cuda-core")},
        }

    def meter(self) -> EnergyMeter | None:
        """That of the GPU behind CUDA's number 0, which the management library may number differently."""
        address = bytes(self._call("cuDeviceGetPCIBusId", 32, 0)).split(b"\0")[0].decode("ascii")
        return find_meter(address)


def _driver_release() -> str:
    """The driver's version as its users know it, which its functions do not tell."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    query = [tool, "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"]
    run = subprocess.run(query, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else "unknown"


class _Batch(NamedTuple):
    """Calls that are timed together, the writes before them, and what waits for them.

    `wait` is None for calls in the default stream, which the events wait for.
    """

    calls: int
    flushes: int
    wait: Callable[[], object] | None = None


class Gpu:
    """GPU 0 with one library of arrays; the counterpart of :class:`benchmarks.workload.Host`."""

    device = "cuda"
    gpu = True

    def __init__(self, arrays: DeviceArrays, clock: EventClock) -> None:
        self.arrays = arrays
        self._clock = clock

    @cached_property
    def facts(self) -> Row:
        """What stands in every row that was measured here."""
        return {"device": self._clock.facts(), "arrays": self.arrays.name}

    def random(self, seed: int, dtype: str, *shapes: tuple[int, ...]) -> list[Any]:
        """Standard-normal arrays that depend on the seed only."""
        # A case begins: what the last one's tensors took is no use to the allocators of others.
        gc.collect()
        self.arrays.give_back()
        return [self.arrays.random(seed + number, shape, dtype) for number, shape in enumerate(shapes)]

    def zeros_like(self, array: Any) -> Any:
        """Zeros of the shape and type of `array`."""
        return self.arrays.zeros_like(array)

    def fetch(self, array: Any) -> Array:
        """A copy on the host."""
        return self.arrays.fetch(array)

    def synchronize(self) -> None:
        """Wait for everything that is queued."""
        self._clock.synchronize()

    def _bytes(self) -> tuple[int, int]:
        """Memory of arrays and of the driver's pool: used, and the sum of both peaks."""
        used, peak = self.arrays.used_bytes(), self.arrays.peak_bytes()
        if self.arrays.counting == "device":  # which has the pool in it
            return used, peak
        pool_used, pool_peak = self._clock.pool_bytes()
        return used + pool_used, peak + pool_peak

    def usage(self, call: Callable[[], _Result]) -> tuple[_Result, measure.Usage]:
        """The result of a call, and its memory: what it holds afterwards, and the most at once."""
        gc.collect()  # what an earlier case left must not be freed while this one is counted
        self.synchronize()
        self.arrays.forget_peak()
        self._clock.forget_peak()
        before, _ = self._bytes()
        result = call()
        self.synchronize()
        used, peak = self._bytes()
        return result, measure.Usage(used - before, max(peak, used) - before, COUNTED[self.arrays.counting])

    def interleave(
        self,
        runners: Mapping[str, Callable[[], object]],
        *,
        seconds_each: float,
        waits: Mapping[str, Callable[[], object]] | None = None,
    ) -> dict[str, measure.Timing]:
        """Time contenders in turns, A B C A B C; a turn is a batch of calls after a cold cache.

        Who runs in streams of his own, where events of the default stream say nothing, has somebody in
        `waits` who waits for his calls, and is timed by the host from an idle GPU on.
        """
        waits = {} if waits is None else waits
        batches = {name: self._batch(run, waits.get(name)) for name, run in runners.items()}
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
        deadline = time.perf_counter() + seconds_each * len(runners)
        for turn in range(MOST):
            if turn >= FEWEST and time.perf_counter() >= deadline:
                break
            for name, run in runners.items():
                samples[name].append(self._sample(run, batches[name]))
        timings = {}
        for name, taken in samples.items():
            device, host = zip(*taken, strict=True)
            timings[name] = measure.summarize(list(device), host=list(host))
        return timings

    def _sample(self, run: Callable[[], object], batch: _Batch) -> tuple[float, float]:
        """Seconds of one call, on the GPU and for the host that queued it."""
        for _ in range(batch.flushes):
            self._clock.flush()
        if batch.wait is not None:
            self._clock.synchronize()
        self._clock.start()
        start = time.perf_counter()
        for _ in range(batch.calls):
            run()
        host = time.perf_counter() - start
        if batch.wait is not None:
            batch.wait()
            return (time.perf_counter() - start) / batch.calls, host / batch.calls
        return self._clock.stop() / batch.calls, host / batch.calls

    def _batch(self, run: Callable[[], object], wait: Callable[[], object] | None = None) -> _Batch:
        """Warm up, and say how many calls fill a batch."""
        deadline = time.perf_counter() + WARM
        single = _Batch(1, 1, wait)
        seconds, host = self._sample(run, single)
        while time.perf_counter() < deadline:
            seconds, host = self._sample(run, single)
        if wait is not None:
            return single._replace(calls=max(1, min(MOST_CALLS, int(WAITED_BATCH / max(seconds, 1e-7)))))
        fitting = min(BATCH / max(seconds, 1e-7), QUEUEING / max(host, 1e-7))
        calls = max(1, min(MOST_CALLS, int(fitting)))
        flushes = 1 + math.ceil(HEAD_START * calls * host / self._flush_seconds)
        return _Batch(calls, min(flushes, MOST_FLUSHES))

    @cached_property
    def _meter(self) -> EnergyMeter | None:
        return self._clock.meter()

    def energy(self, run: Callable[[], object], wait: Callable[[], object] | None = None) -> Row:
        """Joules of one call and the mean power, the GPU's own idling in them; nothing where nobody counts.

        Calls follow one another without a cold cache in between: writing 256 MB would be most of the energy.
        """
        if self._meter is None:
            return {}
        batch = self._batch(run, wait).calls

        def calls_for(seconds: float) -> tuple[int, float]:
            begin, done = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds:
                for _ in range(batch):
                    run()
                done += batch
                if wait is not None:
                    wait()
                self.synchronize()
            return done, time.perf_counter() - begin

        calls_for(ENERGY_SECONDS / 10)  # power rises for a while
        before = self._meter.joules()
        calls, seconds = calls_for(ENERGY_SECONDS)
        joules = self._meter.joules() - before
        return {"joules": joules / calls, "watts": joules / seconds, "energy_seconds": seconds}

    @cached_property
    def _flush_seconds(self) -> float:
        """How long the host gains by one write."""
        taken = []
        for _ in range(5):
            self._clock.start()
            self._clock.flush()
            taken.append(self._clock.stop())
        return max(min(taken), 1e-6)

    def host_seconds(self, run: Callable[[], object], *, calls: int = 50, turns: int = 40) -> measure.Timing:
        """Time that the host needs to queue one call, while the queue has room."""
        samples = []
        for _ in range(turns + 2):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            samples.append((time.perf_counter() - start) / calls)
        return measure.summarize(samples[2:])


def why_no_gpu() -> str:
    """Why nothing can be measured on a GPU here, or an empty string."""
    from numba_sparse_attn.cuda.calls import why_unavailable

    return why_unavailable("cuda-warp", 0) or ""


def find_gpu() -> Gpu | None:
    """The first GPU, or None where our engines find none."""
    return None if why_no_gpu() else Gpu(find_arrays(), DriverClock())
