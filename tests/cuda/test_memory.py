"""Results, temporaries and the order of streams, with a stand-in for the driver."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn.cuda import dlpack, interchange, memory, streams
from numba_sparse_attn.cuda.view import DeviceView

from . import fake_libraries as fake

ERRORS = nsa.errors
FLOAT32 = np.dtype(np.float32)


class Event:
    def __init__(self) -> None:
        self.is_done = False


class Buffer:
    """As cuda.core's: memory that is given back when the object dies."""

    def __init__(self, nbytes: int, stream: Any) -> None:
        self.bytes = np.empty(nbytes, np.uint8)
        self.handle = self.bytes.ctypes.data
        self.stream = stream


class Machine:
    """Records what a GPU would have been asked."""

    def __init__(self) -> None:
        self.waits: list[tuple[int, int]] = []
        self.events: list[Event] = []
        self.capturing: set[int] = set()
        self.beside_capture = 0
        self.made: list[tuple[str, bool]] = []

    def record(self) -> Event:
        self.events.append(Event())
        return self.events[-1]

    def pool(self, name: str) -> Any:
        def allocate(nbytes: int, *, stream: Any) -> Buffer:
            self.made.append((name, self.beside_capture > 0))
            return Buffer(nbytes, stream)

        return lambda device: SimpleNamespace(allocate=allocate)

    @contextlib.contextmanager
    def relaxed(self) -> Iterator[None]:
        self.beside_capture += 1
        try:
            yield
        finally:
            self.beside_capture -= 1


class Nowhere:
    """``on_device`` without a device."""

    def __init__(self, device: int) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine()
    monkeypatch.setitem(sys.modules, "torch", fake.torch_module({0: 70, 1: 71}))
    monkeypatch.setitem(sys.modules, "cupy", fake.cupy_module({0: 80}))
    monkeypatch.setattr(interchange, "_require_cuda", lambda: None)
    monkeypatch.setattr(streams, "own_stream", lambda device: 90 + device)
    monkeypatch.setattr(streams, "device_of_address", lambda address: 0)
    monkeypatch.setattr(streams, "on_device", Nowhere)
    monkeypatch.setattr(streams, "beside_capture", machine.relaxed)
    monkeypatch.setattr(streams, "is_capturing", lambda handle: handle in machine.capturing)
    monkeypatch.setattr(streams, "stream_object", lambda handle, device: machine)
    monkeypatch.setattr(
        streams,
        "wait",
        lambda handle, other, device: None if handle == other else machine.waits.append((handle, other)),
    )
    monkeypatch.setattr(memory, "_pool", machine.pool("pool"))
    monkeypatch.setattr(memory, "_graph_memory", machine.pool("graph"))
    cached = (interchange._torch_stream, memory._torch_dtype, memory._torch_device)
    for function in cached:
        function.cache_clear()
    yield machine
    for function in cached:
        function.cache_clear()
    interchange._READERS.clear()
    interchange._READERS[np.ndarray] = interchange._host
    memory._HELD.clear()


def view_of(array: np.ndarray, **changes: Any) -> DeviceView:
    keywords = {"device": 0, "stream": 0, "library": "other", "owner": array, **changes}
    return DeviceView(array.ctypes.data, array.shape, array.strides, array.dtype, **keywords)


@pytest.mark.parametrize("library", ["torch", "cupy", "jax", "other"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (4,), (0, 3)])
def test_results_are_contiguous_and_of_the_callers_kind(
    machine: Machine, library: str, shape: tuple[int, ...]
) -> None:
    view = memory.allocate(library, shape, FLOAT32, 0, 70)
    assert (view.shape, view.dtype, view.device, view.stream, view.library) == (
        shape,
        FLOAT32,
        0,
        70,
        library,
    )
    assert view.strides == np.empty((1, *shape), np.float32).strides[1:] or not view.size
    kinds = {"torch": fake.Tensor, "cupy": fake.CupyArray, "jax": memory.DeviceArray}
    assert isinstance(view.owner, kinds.get(library, memory.DeviceArray))
    if library != "jax":
        assert memory.deliver(view) is view.owner


def test_torch_results_lie_on_the_device_that_was_asked(machine: Machine) -> None:
    view = memory.allocate("torch", (3,), fake.BFLOAT16, 1, 71)
    assert view.owner.device == "cuda:1" and repr(view.owner.dtype) == "torch.bfloat16"


def test_cupy_without_bfloat16_is_refused(machine: Machine) -> None:
    with pytest.raises(ERRORS.DtypeError, match="bfloat16 for CuPy"):
        memory.allocate("cupy", (3,), fake.BFLOAT16, 0, 80)


def test_numba_results(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def device_array(shape: tuple[int, ...], dtype: Any, stream: Any) -> fake.NumbaArray:
        asked.append(stream)
        return fake.NumbaArray(np.empty(shape, dtype))

    numba_cuda = SimpleNamespace(
        gpus={0: Nowhere(0)}, device_array=device_array, external_stream=lambda handle: ("stream", handle)
    )
    monkeypatch.setitem(sys.modules, "numba.cuda", numba_cuda)
    for stream, object_ in ((0, 0), (50, ("stream", 50))):
        view = memory.allocate("numba", (2, 3), FLOAT32, 0, stream)
        assert view.address == view.owner.array.ctypes.data and asked[-1] == object_


def test_jax_results_are_made_after_the_kernels(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX takes the capsule when the result is delivered, and its stream waits for ours at that time."""
    consumer = 33

    def from_dlpack(array: Any) -> tuple[str, Any]:
        assert array.__dlpack_device__() == (dlpack.CUDA, 0)
        return "jax", array.__dlpack__(stream=consumer)

    monkeypatch.setitem(sys.modules, "jax.dlpack", SimpleNamespace(from_dlpack=from_dlpack))
    view = memory.allocate("jax", (2, 3), fake.BFLOAT16, 0, 90)
    assert machine.waits == []
    kind, capsule = memory.deliver(view)
    assert kind == "jax" and machine.waits == [(consumer, 90)]
    contents = dlpack.read_capsule(capsule, "out")
    assert (contents.address, contents.shape, contents.dtype) == (view.address, (2, 3), fake.BFLOAT16)
    buffer = weakref.ref(view.owner._buffer)
    del view
    gc.collect()
    assert buffer() is not None  # the consumer has it now
    del capsule
    gc.collect()
    assert buffer() is None


def test_results_for_unknown_libraries(machine: Machine) -> None:
    view = memory.allocate("other", (2, 3), FLOAT32, 0, 0)
    array = memory.deliver(view)
    assert array.__cuda_array_interface__ == {
        "version": 3,
        "shape": (2, 3),
        "typestr": "<f4",
        "strides": None,
        "data": (view.address, False),
        "stream": 1,
    }
    assert repr(array) == "DeviceArray(shape=(2, 3), dtype=float32, device=0)"
    again = interchange.device_view(array)
    assert again is not None and (again.address, again.strides) == (view.address, view.strides)
    array.__dlpack__(stream=-1)
    array.__dlpack__()
    assert machine.waits == []  # -1: asked not to; None: the default stream, where the array already is
    versioned = array.__dlpack__(stream=44, max_version=(1, 1))
    assert machine.waits == [(44, 0)]
    assert dlpack._get_name(versioned) == b"dltensor_versioned"
    for keywords in ({"copy": True}, {"dl_device": (dlpack.CPU, 0)}, {"dl_device": (dlpack.CUDA, 1)}):
        with pytest.raises(BufferError):
            array.__dlpack__(**keywords)
    assert array.__dlpack__(dl_device=(dlpack.CUDA, 0), copy=False) is not None


def test_memory_is_freed_beside_captures(machine: Machine) -> None:
    """Freeing is forbidden while anybody captures; dropping an array must be allowed at any time."""
    freed = []

    class Watched(Buffer):
        def __del__(self) -> None:
            freed.append(machine.beside_capture)

    pool = SimpleNamespace(allocate=lambda nbytes, *, stream: Watched(nbytes, stream))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_pool", lambda device: pool)
        view = memory.allocate("other", (3,), FLOAT32, 0, 0)
        assert view.address == view.owner._buffer.handle
        del view
        assert freed == [1] and machine.beside_capture == 0
        patch.setattr(pool, "allocate", lambda nbytes, *, stream: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # and nothing else from what was not made
            memory.scratch(100, 0, 0)


def test_results_in_a_captured_graph(machine: Machine) -> None:
    machine.capturing = {0}
    with pytest.raises(ERRORS.EngineError, match="captured into a CUDA graph"):
        memory.allocate("other", (2,), FLOAT32, 0, 0)


@pytest.mark.parametrize(
    ("library", "capturing", "source"),
    [
        ("other", False, ("pool", True)),  # allowed even while some other stream is captured
        ("jax", False, ("pool", True)),
        ("numba", True, ("graph", False)),  # part of the graph
        ("torch", True, None),
    ],
)
def test_scratch(machine: Machine, library: str, capturing: bool, source: tuple[str, bool] | None) -> None:
    machine.capturing = {70} if capturing else set()
    for nbytes in (0, 1000):
        view = memory.scratch(nbytes, 0, 70, library)
        assert view.nbytes == max(nbytes, 1) and view.address
    assert machine.made == ([source] * 2 if source else [])


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((4, 6), np.float32), ERRORS.EngineError, "out of type ndarray in host memory"),
        (fake.Tensor(np.zeros((4, 6), np.float32), device=1), ERRORS.EngineError, "out on GPU 1"),
        (fake.Tensor(np.zeros((4, 5), np.float32)), ERRORS.ShapeError, r"out with shape \(4, 5\)"),
        (fake.Tensor(np.zeros((4, 6), np.float16)), ERRORS.ShapeError, "type float16"),
        (
            fake.Tensor(np.zeros((4, 6), np.float32), requires_grad=True),
            ERRORS.ArgumentError,
            "must not be written",
        ),
        (fake.ArrayImpl(np.zeros((4, 6), np.float32)), ERRORS.ArgumentError, "must not be written"),
        (
            fake.InterfaceArray(np.zeros((4, 6), np.float32), data=(64, True)),
            ERRORS.ArgumentError,
            "must not be",
        ),
        (fake.CupyArray(np.broadcast_to(np.zeros(6, np.float32), (4, 6))), ERRORS.ShapeError, "one place"),
    ],
)
def test_unfit_out_is_refused(machine: Machine, out: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        memory.accept(out, (4, 6), FLOAT32, 0, ())


def test_out_is_used_and_autograd_is_told(machine: Machine) -> None:
    out = fake.Tensor(np.zeros((6, 4), np.float32).T)
    view = memory.accept(out, (4, 6), FLOAT32, 0, (view_of(np.zeros((4, 6), np.float32)),))
    assert view.strides == (4, 16) and out.versions == 1
    assert memory.deliver(view) is out


def test_out_that_overlaps_an_input_is_refused(machine: Machine) -> None:
    memory_ = np.zeros(100, np.float32)
    out = fake.CupyArray(memory_[40:64].reshape(4, 6))
    for start, stop in ((0, 41), (63, 100), (45, 50)):
        with pytest.raises(ERRORS.ShapeError, match="overlaps an input"):
            memory.accept(out, (4, 6), FLOAT32, 0, (view_of(memory_[start:stop][::-1]),))
    neighbors = (view_of(memory_[:40]), view_of(memory_[64:]), view_of(memory_[50:50]))
    assert memory.accept(out, (4, 6), FLOAT32, 0, neighbors).owner is out


@pytest.mark.parametrize(
    ("shape", "strides", "overlaps"),
    [
        ((4, 6), (24, 4), False),
        ((4, 6), (4, 16), False),
        ((4, 6), (-24, 4), False),
        ((1, 6), (0, 4), False),
        ((4, 6), (0, 4), True),
        ((4, 6), (20, 4), True),
        ((0, 6), (0, 0), False),
        ((), (), False),
    ],
)
def test_arrays_that_overlap_themselves(
    shape: tuple[int, ...], strides: tuple[int, ...], overlaps: bool
) -> None:
    assert memory._overlaps_itself(shape, strides, FLOAT32.itemsize) == overlaps


def test_streams_of_a_call_are_joined_and_released(machine: Machine) -> None:
    array = np.zeros(3)
    same = (view_of(array, stream=5), view_of(array, stream=5))
    assert memory.join(same) == 5
    memory.release(same, 5)
    assert machine.waits == []
    mixed = (view_of(array, stream=5), view_of(array, stream=6), view_of(array, stream=0))
    assert memory.join(mixed) == 5
    assert machine.waits == [(5, 6), (5, 0)]
    machine.waits.clear()
    memory.release(mixed, 5)
    assert machine.waits == [(6, 5), (0, 5)]
    assert machine.events == []


def test_capsules_are_held_until_the_kernels_have_run(machine: Machine) -> None:
    class Capsule:
        pass

    holds = [Capsule() for _ in range(4)]
    alive = [weakref.ref(hold) for hold in holds]
    for hold in holds:
        memory.release((view_of(np.zeros(3), hold=hold), view_of(np.zeros(3))), 0)
    del hold, holds
    plain = (view_of(np.zeros(3)),)

    def living() -> list[bool]:
        memory.join(plain)
        gc.collect()
        return [reference() is not None for reference in alive]

    assert living() == [True] * 4
    machine.events[0].is_done = True
    machine.events[1].is_done = True
    assert living() == [False, False, True, True]
    machine.events[3].is_done = True
    assert living() == [False, False, True, True]  # in order: the third still runs
    machine.events[2].is_done = True
    assert living() == [False] * 4


def test_capsules_are_given_back_from_many_threads(machine: Machine) -> None:
    views = (view_of(np.zeros(3), hold=object()),)

    def work() -> None:
        for _ in range(200):
            memory.release(views, 0)
            machine.events[-1].is_done = True
            memory.join(views)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for event in machine.events:
        event.is_done = True
    memory.join(views)
    assert not memory._HELD
