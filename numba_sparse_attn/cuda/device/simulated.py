"""The twin of ``lanes`` for Numba's simulator, where every lane is a Python thread and memory is the host's.

The simulator has no warps: its only barrier is that of a block, and it costs milliseconds. Here each warp
has a barrier of its own, so warps may leave early and make different numbers of rounds, as on a GPU, and a
lane that misses a collective is an error instead of a wrong number. Addresses are checked too: their
alignment always, and inside of :func:`guarded` also what they point to.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import ml_dtypes
import numpy as np
import numpy.typing as npt
from numba import cuda, int64

__all__ = [
    "aligned_room",
    "ballot",
    "commit_copies",
    "copy_chunk",
    "exchange",
    "exp2",
    "from_lane",
    "guarded",
    "load_chunk",
    "load_element",
    "load_int32",
    "load_int64",
    "load_shared_chunk",
    "load_written",
    "shared_elements",
    "shared_room",
    "store_chunk",
    "store_element",
    "store_int32",
    "wait_for_copies",
    "xor_lane",
]

_LANES = 32
_CHUNK_BYTES = 16
#: Seconds after which a lane that waits for the others of its warp gives up.
_PATIENCE = 60.0
_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
_INT32, _INT64 = np.dtype(np.int32), np.dtype(np.int64)

_Array = npt.NDArray[Any]
_Ranges = list[tuple[int, int]]


class _Warp:
    """What 32 threads exchange values through.

    A lane that has read goes on to the next collective while others still read. There are two sets of
    slots for that, used in turn: nobody gets two collectives ahead of a lane that has not arrived.
    """

    def __init__(self) -> None:
        self._slots: tuple[list[Any], list[Any]] = ([None] * _LANES, [None] * _LANES)
        self._combined: list[Any] = [None, None]
        self._turns = [0] * _LANES
        self._arrived = 0
        self._counting = threading.Lock()
        self._gates = [threading.Lock() for _ in range(_LANES)]
        for gate in self._gates:
            gate.acquire()

    def exchange(self, lane: int, value: Any, combine: Callable[[list[Any]], Any] | None) -> Any:
        """The values of all lanes, once every lane has come here; or what `combine` makes of them, once."""
        turn = self._turns[lane]
        self._turns[lane] ^= 1
        slots = self._slots[turn]
        slots[lane] = value
        with self._counting:
            self._arrived += 1
            last = self._arrived == _LANES
            if last:
                self._arrived = 0
        if last and combine is not None:
            self._combined[turn] = combine(slots)
        # A gate a lane: half the time of threading.Barrier, whose lanes also queue for one lock.
        if last:
            for other, gate in enumerate(self._gates):
                if other != lane:
                    gate.release()
        else:
            self._wait(lane)
        return slots if combine is None else self._combined[turn]

    def _wait(self, lane: int) -> None:
        latest = time.monotonic() + _PATIENCE
        while not self._gates[lane].acquire(timeout=1.0):
            # The simulator tells threads to give up after one of them has failed.
            if _thread().abort or time.monotonic() > latest:
                raise RuntimeError(f"lane {lane} waited for lanes of its warp that did not come")


#: The warps of a block that is running, by the simulator's object for the block.
_warps: WeakKeyDictionary[Any, dict[int, _Warp]] = WeakKeyDictionary()
_making_warps = threading.Lock()
_making_rooms = threading.Lock()


def _thread() -> Any:
    """The simulator's object for the thread that calls."""
    return threading.current_thread()


def exchange(value: Any, combine: Callable[[list[Any]], Any] | None = None) -> tuple[Any, int]:
    """The values of all lanes of the warp, or `combine` of them, and the number of the lane that calls."""
    thread = _thread()
    number, lane = divmod(thread.thread_id, _LANES)
    with _making_warps:
        warps = _warps.setdefault(thread._manager, {})
        if number not in warps:
            warps[number] = _Warp()
    return warps[number].exchange(lane, value, combine), lane


def xor_lane(value: Any, distance: int) -> Any:
    """The value of the lane whose number differs in the bits of `distance`."""
    values, mine = exchange(value)
    return values[mine ^ distance]


def from_lane(value: Any, lane: int) -> Any:
    """The value of one lane, for every lane of the warp (which may name different ones)."""
    values, _ = exchange(value)
    return values[lane % _LANES]


def ballot(condition: Any) -> Any:
    """Bit l says whether it holds in lane l."""
    votes, _ = exchange(
        bool(condition), lambda given: sum(int(vote) << lane for lane, vote in enumerate(given))
    )
    return np.uint32(votes)


def exp2(kind: str) -> Callable[[Any], Any]:
    """2**x in the accumulator type of `kind`."""
    real = _accumulator(kind).type

    def power(x: Any) -> Any:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.exp2(real(x))

    return power


#: While `guarded` is in force: the byte ranges that may be read, and those that may be written.
_allowed: tuple[_Ranges, _Ranges] | None = None


@contextmanager
def guarded(readable: Iterable[_Array], writable: Iterable[_Array]) -> Iterator[None]:
    """Inside, kernels read only from `readable` and write only to `writable`; all else raises.

    An array to which a kernel writes may not be read by it: loads go through the read-only path.
    """
    global _allowed
    bounds = np.lib.array_utils.byte_bounds
    _allowed = [bounds(array) for array in readable], [bounds(array) for array in writable]
    try:
        yield
    finally:
        _allowed = None


def _elements(
    address: Any, dtype: np.dtype[Any], count: int, *, written: bool = False, shared: bool = False
) -> _Array:
    """The elements at an address, as a view; `shared` memory is not among the arrays that are guarded."""
    begin, size = int(address), count * dtype.itemsize
    if begin % size:
        raise RuntimeError(f"{size} bytes at {begin:#x}, which is no multiple of {size}")
    if not shared:
        _check(begin, size, written)
    memory = memoryview((ctypes.c_char * size).from_address(begin))
    return np.frombuffer(memory, dtype)


def shared_elements(address: Any, dtype: np.dtype[Any], count: int) -> _Array:
    """The elements at an address of shared memory, as a view."""
    return _elements(address, dtype, count, shared=True)


def _check(begin: int, size: int, written: bool) -> None:
    """Refuse bytes that no array holds."""
    if _allowed is not None and not any(
        low <= begin and begin + size <= high for low, high in _allowed[written]
    ):
        raise RuntimeError(f"{size} bytes {'written' if written else 'read'} outside of the arrays")


def _accumulator(kind: str) -> np.dtype[Any]:
    return _DTYPES["float64" if kind == "float64" else "float32"]


def load_int32(address: Any) -> Any:
    """The int32 at an address."""
    return _elements(address, _INT32, 1)[0]


def load_int64(address: Any) -> Any:
    """The int64 at an address."""
    return _elements(address, _INT64, 1)[0]


def store_int32(address: Any, value: Any) -> None:
    """The int32 at an address becomes `value`."""
    _elements(address, _INT32, 1, written=True)[0] = value


def _chunk_loader(kind: str, *, shared: bool) -> Callable[[Any, _Array, int], None]:
    dtype = _DTYPES[kind]
    count = _CHUNK_BYTES // dtype.itemsize

    def load(address: Any, target: _Array, offset: int) -> None:
        target[offset : offset + count] = _elements(address, dtype, count, shared=shared)

    return load


def load_chunk(kind: str) -> Callable[[Any, _Array, int], None]:
    """Function ``(address, target, offset)``: 16 aligned bytes of `kind` into an accumulator array."""
    return _chunk_loader(kind, shared=False)


def load_shared_chunk(kind: str) -> Callable[[Any, _Array, int], None]:
    """The same from shared memory."""
    return _chunk_loader(kind, shared=True)


def shared_room(nbytes: int) -> Callable[[], Any]:
    """Function ``()``: the address of so many bytes of shared memory, aligned to 16."""
    return aligned_room(nbytes, _CHUNK_BYTES)


def aligned_room(nbytes: int, alignment: int) -> Callable[[], Any]:
    """Function ``()``: the address of so many bytes of shared memory, at a multiple of `alignment`."""

    @cuda.jit(device=True)
    def room():
        # Two threads that come first together would get an array each, and one of these would not stay.
        with _making_rooms:
            array = cuda.shared.array((nbytes + alignment) // 8, int64)
        return np.int64(-(-array.__array_interface__["data"][0] // alignment) * alignment)

    return room


#: What a thread has queued: closed groups of copies, the open one last. A copy is made when it is waited
#: for and not before, so a kernel that reads too early reads what was there.
_Copies = list[list[tuple[int, int, int]]]
_copies: WeakKeyDictionary[Any, _Copies] = WeakKeyDictionary()


def _copies_of_thread() -> _Copies:
    with _making_warps:
        return _copies.setdefault(_thread(), [[]])


def copy_chunk(target: Any, source: Any, size: Any) -> None:
    """Queue a copy of `size` bytes, 0 to 16, to a shared address; the rest of the 16 becomes 0."""
    _copies_of_thread()[-1].append((int(target), int(source), int(size)))


def commit_copies() -> None:
    """Close a group: the copies that this thread has queued since the last one; it may be empty."""
    _copies_of_thread().append([])


def wait_for_copies(groups: int) -> Callable[[], None]:
    """Function ``()``: make the copies of all groups of this thread but the latest `groups`."""

    def wait() -> None:
        queued = _copies_of_thread()
        while len(queued) - 1 > groups:
            for target, source, size in queued.pop(0):
                if source % _CHUNK_BYTES or target % _CHUNK_BYTES:
                    raise RuntimeError(f"16 bytes copied from {source:#x} to {target:#x}: not aligned")
                ctypes.memset(target, 0, _CHUNK_BYTES)
                if size:
                    _check(source, size, False)
                    ctypes.memmove(target, source, size)

    return wait


def store_chunk(kind: str) -> Callable[[Any, _Array, int], None]:
    """Function ``(address, source, offset)``: accumulator elements, rounded, to 16 aligned bytes."""
    dtype = _DTYPES[kind]
    count = _CHUNK_BYTES // dtype.itemsize

    def store(address: Any, source: _Array, offset: int) -> None:
        with np.errstate(over="ignore"):
            _elements(address, dtype, count, written=True)[:] = source[offset : offset + count]

    return store


def load_element(kind: str) -> Callable[[Any], Any]:
    """Function ``(address)``: one element, widened."""
    dtype, accumulator = _DTYPES[kind], _accumulator(kind).type

    def load(address: Any) -> Any:
        return accumulator(_elements(address, dtype, 1)[0])

    return load


def load_written(kind: str) -> Callable[[Any], Any]:
    """Function ``(address)``: one element, widened, of memory that the kernel itself writes to."""
    dtype, accumulator = _DTYPES[kind], _accumulator(kind).type

    def load(address: Any) -> Any:
        return accumulator(_elements(address, dtype, 1, written=True)[0])

    return load


def store_element(kind: str) -> Callable[[Any, Any], None]:
    """Function ``(address, value)``: one accumulator value, rounded."""
    dtype = _DTYPES[kind]

    def store(address: Any, value: Any) -> None:
        with np.errstate(over="ignore"):
            _elements(address, dtype, 1, written=True)[0] = value

    return store
