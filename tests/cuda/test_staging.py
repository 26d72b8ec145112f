"""Host copies in pieces, with NumPy memory for the GPU and transfers that take their time."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_sparse_attn.cuda import staging

SLOT = 64


class Event:
    """Done when every transfer before it has been carried out."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.due = 0

    def sync(self) -> None:
        self.bus.run_until(self.due)


class Bus:
    """Transfers that are carried out as late as possible: when somebody waits for them."""

    def __init__(self) -> None:
        self.queued: list[tuple[int, int, int]] = []
        self.done = 0
        self.largest = 0
        self.lock = threading.Lock()

    def copy(self, destination: int, source: int, nbytes: int, stream: int) -> None:
        assert stream == 7 and 0 < nbytes <= SLOT
        self.queued.append((destination, source, nbytes))

    def record(self, stream: int, event: Any) -> Event:
        event = event or Event(self)
        event.due = len(self.queued)
        return event

    def run_until(self, count: int) -> None:
        with self.lock:
            while self.done < count:
                ctypes.memmove(*self.queued[self.done])
                self.done += 1

    def run(self) -> None:
        self.run_until(len(self.queued))


def make_ring() -> tuple[staging.Ring, Bus]:
    bus = Bus()
    return staging.Ring(np.zeros(SLOT * staging.SLOTS, np.uint8), bus.copy, bus.record), bus


def layouts(array: np.ndarray) -> list[np.ndarray]:
    """Views of other strides: reversed, transposed, with gaps, broadcast."""
    found = [array, array[::-1], array.T, np.moveaxis(array, 0, -1)]
    if array.ndim:
        found += [array[..., ::2], np.broadcast_to(array[:1], (3, *array.shape[1:]))]
    return found


@pytest.fixture(params=["1", "4"], autouse=True)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSA_NUM_THREADS", request.param)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 7, 9), (40, 3, 4), (2, 3, 130), (1000,)])
def test_there_and_back(shape: tuple[int, ...], dtype: Any) -> None:
    ring, bus = make_ring()
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8).view(dtype)[..., 0]
    for array in layouts(whole):
        device = np.zeros(array.shape, dtype)
        ring.send(array, device.ctypes.data, 7)
        bus.run()
        assert device.tobytes() == array.tobytes()  # the bits, also of NaN
        back = np.zeros((*array.shape, 2), dtype)[..., 1]
        ring.fetch(device.ctypes.data, back, 7)
        assert back.tobytes() == array.tobytes()


def test_a_sent_array_may_change_at_once() -> None:
    ring, bus = make_ring()
    array = np.arange(400, dtype=np.float32)
    device = np.zeros_like(array)
    ring.send(array, device.ctypes.data, 7)
    array[:] = -1
    bus.run()
    np.testing.assert_array_equal(device, np.arange(400))


def test_users_of_one_ring_take_turns() -> None:
    ring, bus = make_ring()
    arrays = [np.full((50, 9), number, np.float32) for number in range(6)]
    devices = [np.zeros_like(array) for array in arrays]
    backs = [np.zeros_like(array) for array in arrays]

    def work(number: int) -> None:
        for _ in range(5):
            ring.send(arrays[number], devices[number].ctypes.data, 7)
            ring.fetch(devices[number].ctypes.data, backs[number], 7)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    bus.run()
    for array, device, back in zip(arrays, devices, backs, strict=True):
        np.testing.assert_array_equal(device, array)
        np.testing.assert_array_equal(back, array)


def test_a_failed_transfer_leaves_the_ring_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    ring, bus = make_ring()
    array = np.arange(300, dtype=np.float64)
    device = np.zeros_like(array)

    copies = []
    start_copy = ring._start_copy

    def watch(*arguments: Any) -> Any:
        copies.append(start_copy(*arguments))
        return copies[-1]

    def fail(*arguments: int) -> None:
        raise RuntimeError("bus")

    monkeypatch.setattr(ring, "_start_copy", watch)
    for method in (ring.send, lambda a, address, stream: ring.fetch(address, a, stream)):
        monkeypatch.setattr(ring, "_copy", fail)
        with pytest.raises(RuntimeError, match="bus"):
            method(array, device.ctypes.data, 7)
        assert all(copy.done() for copy in copies)
        monkeypatch.setattr(ring, "_copy", bus.copy)
    ring.send(array, device.ctypes.data, 7)
    bus.run()
    np.testing.assert_array_equal(device, array)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(8, 200))
def test_pieces_make_up_the_array(shape: list[int], limit: int) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(np.float64)
    pieces = list(staging._pieces(array, limit))
    assert all(piece.nbytes <= limit and np.shares_memory(piece, array) for piece in pieces)
    np.testing.assert_array_equal(np.concatenate([piece.reshape(-1) for piece in pieces]), array.reshape(-1))


def test_pieces_are_about_equal() -> None:
    sizes = [piece.nbytes for piece in staging._pieces(np.zeros((65, 2), np.float64), 64 * 16)]
    assert sizes == [33 * 16, 32 * 16]
