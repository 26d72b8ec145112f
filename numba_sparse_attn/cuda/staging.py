"""NumPy arrays to a GPU and back through pinned memory, copied in pieces so that CPU and DMA work at once.

The GPU reads and writes pageable memory at a fraction of the bus's speed, and pinning a user's array costs
more than a copy of it. So there is a ring of small pinned slots per GPU, made once: a few threads copy pieces
of the array into slots while the GPU fetches the slots that are full. A strided array is gathered by that
same copy.

On an H200's host (PCIe 5, 16 cores) this moves 28 to 38 GB/s either way, and 7 to 15 GB/s where an array has
only a few pieces of 2 MiB. The bus alone does 55 GB/s each way and 101 GB/s both ways; the limit is the CPU,
which copies 10 GB/s a thread. That is why transfers are not overlapped further. Sending 64 MiB and fetching
as much at once, on two rings, took between 0.9 and 1.5 times what one after the other takes, and eight
threads are no faster than four. Computing on some heads while others are on their way made a call slower,
7.6 ms instead of 4.0 ms (16 heads, 8192 tokens, d 64, float16, in four parts): parts have fewer pieces for
the threads to share, and all that could be hidden were 0.8 ms of computing.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import config
from . import memory, streams
from .view import DeviceView

__all__ = ["Ring", "to_device", "to_host"]

Array = npt.NDArray[Any]

#: A transfer of this size takes 50 us or more on any bus, ten times what it costs to start one.
SLOT_BYTES = 2 << 20
SLOTS = 8
#: At most.
_THREADS = 4


def to_device(array: Array, device: int, stream: int) -> DeviceView:
    """A C-contiguous copy of a host array in GPU memory, ready in the order of `stream`.

    Returns when the array has been read, which is before all of it has arrived. `device` must be the
    current one: see :class:`streams.on_device`.
    """
    view = memory.allocate("other", array.shape, array.dtype, device, stream)
    if array.size:
        with streams.beside_capture():
            _ring(device).send(array, view.address, stream)
    return view


def to_host(view: DeviceView, array: Array, stream: int) -> None:
    """Copy a C-contiguous GPU array to a host array of the same shape and type; returns when it is there."""
    if array.size:
        with streams.beside_capture():
            _ring(view.device).fetch(view.address, array, stream)


class _Slot:
    """A piece of pinned memory, and the event after its last transfer."""

    __slots__ = ("address", "bytes", "event")

    def __init__(self, pinned: npt.NDArray[np.uint8]) -> None:
        self.bytes = pinned
        self.address = pinned.ctypes.data
        self.event: Any = None

    def like(self, piece: Array) -> Array:
        """The beginning of the slot as an array like `piece`."""
        return self.bytes[: piece.nbytes].view(piece.dtype).reshape(piece.shape)


class Ring:
    """Pinned slots, used in turn. Transfers of one GPU share a bus, so one at a time has the ring.

    Parameters
    ----------
    pinned : uint8 [bytes]
        Memory for the slots.
    copy : callable(destination, source, nbytes, stream)
        Queues a transfer between two addresses.
    record : callable(stream, event or None) -> event
        An event, the given one if there is one, that ``sync()`` waits for.
    """

    def __init__(
        self,
        pinned: npt.NDArray[np.uint8],
        copy: Callable[[int, int, int, int], None],
        record: Callable[[int, Any], Any],
    ) -> None:
        self._slot_bytes = len(pinned) // SLOTS
        self._slots = [_Slot(part) for part in pinned.reshape(SLOTS, self._slot_bytes)]
        self._copy = copy
        self._record = record
        self._pool = ThreadPoolExecutor(_THREADS, "numba_sparse_attn-staging")
        self._lock = threading.Lock()
        self._turn = 0

    def send(self, array: Array, address: int, stream: int) -> None:
        """Queue the transfer of an array, in C order, to a device address."""
        threads = min(_THREADS, config.thread_count())
        copies: deque[tuple[Future[None], _Slot, int, int]] = deque()

        def transfer() -> None:
            copied, slot, offset, nbytes = copies.popleft()
            copied.result()
            self._copy(address + offset, slot.address, nbytes, stream)
            slot.event = self._record(stream, slot.event)

        with self._lock:
            try:
                offset = 0
                for piece in _pieces(_as_words(array), self._slot_bytes):
                    slot = self._next()
                    copied = self._start_copy(slot.like(piece), piece, threads)
                    copies.append((copied, slot, offset, piece.nbytes))
                    offset += piece.nbytes
                    if len(copies) == threads:
                        transfer()
                while copies:
                    transfer()
            finally:
                wait([entry[0] for entry in copies])  # nobody writes a slot that the next user has

    def fetch(self, address: int, array: Array, stream: int) -> None:
        """Transfer what lies at a device address into an array, in C order."""
        threads = min(_THREADS, config.thread_count())
        transfers: deque[tuple[_Slot, Array]] = deque()
        copies: deque[Future[None]] = deque()

        def unload() -> None:
            slot, piece = transfers.popleft()
            slot.event.sync()
            copies.append(self._start_copy(piece, slot.like(piece), threads))

        with self._lock:
            try:
                offset = 0
                for piece in _pieces(_as_words(array), self._slot_bytes):
                    if len(copies) == threads:
                        copies.popleft().result()
                    slot = self._next()
                    self._copy(slot.address, address + offset, piece.nbytes, stream)
                    slot.event = self._record(stream, slot.event)
                    transfers.append((slot, piece))
                    offset += piece.nbytes
                    if len(transfers) == SLOTS // 2:  # the other half is being emptied
                        unload()
                while transfers:
                    unload()
                for copy in copies:
                    copy.result()
            finally:
                wait(copies)

    def _next(self) -> _Slot:
        """The slot that was used longest ago, once its transfer is over."""
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % SLOTS
        if slot.event is not None:
            slot.event.sync()
        return slot

    def _start_copy(self, destination: Array, source: Array, threads: int) -> Future[None]:
        if threads > 1:
            return self._pool.submit(np.copyto, destination, source)
        done: Future[None] = Future()
        np.copyto(destination, source)
        done.set_result(None)
        return done


def _as_words(array: Array) -> Array:
    """The array as unsigned integers: NumPy then copies bits, without Python's lock, whatever the type."""
    return array.view(f"u{array.dtype.itemsize}")


def _pieces(array: Array, limit: int) -> Iterator[Array]:
    """Views of at most `limit` bytes that make up an array in C order, about equally large."""
    if array.nbytes <= limit:
        yield array
        return
    rows = len(array)
    row_bytes = array.nbytes // rows
    if row_bytes > limit:
        for row in array:
            yield from _pieces(row, limit)
        return
    count = -(-array.nbytes // limit)
    per_piece = min(-(-rows // count), limit // row_bytes)
    for begin in range(0, rows, per_piece):
        yield array[begin : begin + per_piece]


_RING_LOCK = threading.Lock()


def _ring(device: int) -> Ring:
    with _RING_LOCK:  # two threads must not both pin memory
        return _make_ring(device)


@functools.cache
def _make_ring(device: int) -> Ring:
    """The ring of a GPU, in pinned memory that is kept until the process ends."""
    nbytes = SLOTS * SLOT_BYTES
    address = int(streams.call("cuMemHostAlloc", nbytes, streams.driver().CU_MEMHOSTALLOC_PORTABLE))
    pinned = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def copy(destination: int, source: int, nbytes: int, stream: int) -> None:
        streams.call("cuMemcpyAsync", destination, source, nbytes, stream or 1)

    def record(stream: int, event: Any) -> Any:
        return streams.stream_object(stream, device).record(event)

    return Ring(pinned, copy, record)
