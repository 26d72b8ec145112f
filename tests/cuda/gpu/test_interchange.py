"""Arrays of PyTorch, CuPy, JAX and Numba on a GPU: seen in place, made, ordered, captured, staged.

Libraries that are not installed are not collected. Memory is read back through the driver, not through the
library that made it, so a wrong address or stride cannot hide.
"""

from __future__ import annotations

import functools
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn.cuda import interchange, memory, staging, streams
from numba_sparse_attn.cuda.view import DeviceView

from .libraries import (
    LIBRARIES,
    each_dtype,
    each_library,
    each_of,
    fetch,
    knows,
    modules,
    needs,
    put,
    random_array,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def device() -> Iterator[int]:
    with streams.on_device(0):
        yield 0


@functools.cache
def device_count() -> int:
    streams.call("cuInit", 0)
    return int(streams.call("cuDeviceGetCount"))


def peek(view: DeviceView, stream: int | None = None) -> np.ndarray:
    """A view's elements, copied in the order of its stream (or another) by the driver."""
    stream = (view.stream if stream is None else stream) or 1
    low, high = view.extent()
    raw = np.zeros(max(high - low, 1), np.uint8)
    if high > low:
        streams.call("cuMemcpyAsync", raw.ctypes.data, low, high - low, stream)
    streams.call("cuStreamSynchronize", stream)
    return np.ndarray(view.shape, view.dtype, raw, view.address - low, view.strides)


def viewed(value: Any) -> DeviceView:
    view = interchange.device_view(value)
    assert view is not None
    return view


def assert_same_bits(left: np.ndarray, right: np.ndarray) -> None:
    assert left.dtype == right.dtype and left.shape == right.shape
    assert np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()


# Arrays coming in ---------------------------------------------------------------------------------------


@each_library
@each_dtype
def test_contiguous_arrays(library: str, dtype: np.dtype) -> None:
    if not knows(library, dtype):
        return
    array = random_array(dtype)
    value = put(library, array)
    view = viewed(value)
    assert (view.library, view.device, view.dtype) == (library, 0, dtype)
    assert view.owner is value and view.strides == array.strides
    assert_same_bits(peek(view), array)


STRIDED: dict[str, Callable[[Any], Any]] = {
    "sliced": lambda x: x[:, 3:30:2, 1:],
    "transposed": lambda x: x.transpose(1, 2) if hasattr(x, "data_ptr") else x.transpose(0, 2, 1),
    "one row": lambda x: x[1],
}


@each_of("torch", "cupy")
@pytest.mark.parametrize("layout", STRIDED)
def test_strided_arrays(library: str, layout: str) -> None:
    array = random_array(np.float32)
    expected = STRIDED[layout](array)
    view = viewed(STRIDED[layout](put(library, array)))
    assert (view.shape, view.strides) == (expected.shape, expected.strides)
    assert_same_bits(peek(view), expected)


#: Numba takes no ellipsis and turns no axes but those of a matrix.
@pytest.mark.parametrize(
    "part",
    [np.s_[:, 3:30], np.s_[:, :, 2:], np.s_[:, 3:30:2, 1:], np.s_[1]],
    ids=["rows", "columns", "every other row", "one matrix"],
)
def test_strided_numba_arrays(part: Any) -> None:
    array = random_array(np.float64)
    view = viewed(put("numba", array)[part])
    assert (view.shape, view.strides) == (array[part].shape, array[part].strides)
    assert_same_bits(peek(view), array[part])


def test_transposed_numba_matrices() -> None:
    """By Numba they are copies; its own layout of columns is a view."""
    array = np.asfortranarray(random_array(np.float32)[0])
    view = viewed(modules("numba").to_device(array))
    assert view.strides == array.strides
    assert_same_bits(peek(view), array)


@each_library
def test_empty_arrays(library: str) -> None:
    view = viewed(put(library, np.zeros((2, 0, 4), np.float32)))
    assert view.shape == (2, 0, 4) and view.size == 0 and view.device == 0


@needs("torch")
def test_torch_details() -> None:
    torch = modules("torch")
    leaf = torch.ones(4, 5, device="cuda", requires_grad=True)
    view = viewed(leaf)
    assert not view.writable and peek(view).all()
    assert viewed(torch.nn.Parameter(torch.ones(3, device="cuda"))).shape == (3,)
    assert viewed(torch.ones(3, device="cuda").expand(4, 3)).strides == (0, 4)
    negative = torch.ones(3, dtype=torch.complex64, device="cuda").mul(1j).conj().imag
    assert negative.is_neg() and (peek(viewed(negative)) == -1).all()
    with pytest.raises(nsa.errors.ArgumentError, match="without memory"):
        viewed(torch.eye(3, device="cuda").to_sparse())
    assert interchange.device_view(torch.ones(3)) is None
    assert interchange.device_view(torch.ones(3).pin_memory()) is None


@needs("jax")
def test_jax_details() -> None:
    jax = modules("jax")
    value = put("jax", random_array(np.float32))
    with pytest.raises(nsa.errors.ArgumentError, match="traced"):
        jax.jit(lambda x: viewed(x))(value)
    on_host = jax.device_put(np.zeros(3), jax.devices("cpu")[0])
    assert interchange.device_view(on_host) is None
    value.delete()
    with pytest.raises(nsa.errors.ArgumentError):
        viewed(value)


@needs("jax")
def test_jax_values_are_waited_for() -> None:
    """The array is looked at while JAX is still computing it."""
    jax = modules("jax")
    start = put("jax", random_array(np.float32, (2048, 2048)) / 50)

    @jax.jit
    def compute(x: Any) -> Any:
        for _ in range(30):
            x = x @ start
        return x

    compute(start).block_until_ready()
    value = compute(start)
    seen = peek(viewed(value))
    assert_same_bits(seen, np.asarray(value))


# Streams ------------------------------------------------------------------------------------------------


@needs("torch")
def test_current_stream_of_torch() -> None:
    torch = modules("torch")
    tensor = torch.zeros(1 << 20, device="cuda")
    assert viewed(tensor).stream == 0
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        tensor.fill_(3)
        view = viewed(tensor)
        assert view.stream == side.cuda_stream == interchange.current_stream("torch", 0)
        assert (peek(view) == 3).all()


@needs("cupy")
def test_current_stream_of_cupy() -> None:
    cupy = modules("cupy")
    value = cupy.zeros(4)
    assert viewed(value).stream == 0
    side = cupy.cuda.Stream(non_blocking=True)
    with side:
        assert viewed(value).stream == side.ptr == interchange.current_stream("cupy", 0)


def test_stream_of_numba_arrays() -> None:
    cuda = modules("numba")
    stream = cuda.stream()
    value = cuda.to_device(np.ones(5), stream=stream)
    assert viewed(value).stream == int(stream)
    result = memory.allocate("numba", (5,), np.dtype(np.float64), 0, int(stream))
    assert viewed(result.owner).stream == int(stream)


@needs("torch")
def test_a_call_waits_for_all_its_inputs_and_they_for_it() -> None:
    torch = modules("torch")
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    q = torch.zeros(1 << 20, device="cuda")
    k = torch.zeros(1 << 20, device="cuda")
    copy = torch.zeros(1 << 20, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(second):
        torch.cuda._sleep(50_000_000)
        k.fill_(1)
        view_k = viewed(k)
    with torch.cuda.stream(first):
        view_q = viewed(q)
        stream = memory.join((view_q, view_k))
        assert stream == first.cuda_stream
        torch.cuda._sleep(50_000_000)
        streams.call("cuMemcpyAsync", copy.data_ptr(), view_k.address, view_k.nbytes, stream)
        memory.release((view_q, view_k), stream)
    with torch.cuda.stream(second):
        k.fill_(2)  # must not be seen
    torch.cuda.synchronize()
    assert bool((copy == 1).all()) and bool((k == 2).all())


@needs("torch", "jax")
def test_jax_inputs_are_kept_while_they_are_read() -> None:
    """The array is dropped and JAX's free memory overwritten while a slow kernel has yet to read it."""
    torch = modules("torch")
    jax = modules("jax")
    count = 1 << 22
    copy = torch.zeros(count, device="cuda")
    torch.cuda.synchronize()
    value = jax.numpy.full(count, 5.0, np.float32)
    view = viewed(value)
    stream = memory.join((view,))
    assert stream == streams.own_stream(0)
    with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
        torch.cuda._sleep(100_000_000)
    streams.call("cuMemcpyAsync", copy.data_ptr(), view.address, view.nbytes, stream)
    memory.release((view,), stream)
    del value, view
    gc.collect()
    fillers = [jax.numpy.full(count, float(number), np.float32) for number in range(8)]
    jax.block_until_ready(fillers)
    torch.cuda.synchronize()
    assert bool((copy == 5).all())
    memory.join((viewed(fillers[0]),))
    assert not memory._HELD


def test_a_thread_without_a_context() -> None:
    """CUDA's current device belongs to the thread; a new one has none."""
    array = random_array(np.float32)
    found: list[np.ndarray] = []

    def work() -> None:
        with streams.on_device(0):
            stream = streams.own_stream(0)
            found.append(peek(staging.to_device(array, 0, stream)))
        status, _ = streams.driver().cuCtxGetDevice()
        assert status  # as before: none

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert_same_bits(found[0], array)


# Results going out --------------------------------------------------------------------------------------


@each_library
@each_dtype
def test_results(library: str, dtype: np.dtype) -> None:
    modules(library)  # whose stream can only be asked for once it has been imported
    stream = interchange.current_stream(library, 0)
    if not knows(library, dtype):
        with pytest.raises(nsa.errors.DtypeError):
            memory.allocate(library, (3,), dtype, 0, stream)
        return
    for shape in ((2, 37, 24), (1,), (4, 1, 3)):
        array = random_array(dtype, shape)
        view = memory.allocate(library, shape, dtype, 0, stream)
        staging._ring(0).send(array, view.address, stream)
        result = memory.deliver(view)
        kind = type(put(library, array))
        assert type(result) is kind
        assert_same_bits(fetch(library, result), array)


@each_library
def test_results_are_right_under_churn(library: str) -> None:
    """Results come and go while later ones are made in the memory that they leave behind."""
    stream = interchange.current_stream(library, 0)
    dtype = np.dtype(np.float32)
    for number in range(200):
        array = np.full((1 << 16,), number, dtype)
        view = memory.allocate(library, array.shape, dtype, 0, stream)
        staging._ring(0).send(array, view.address, stream)
        result = memory.deliver(view)
        del view
        if library != "numba":
            result = result + 1  # the first result dies while this runs
            array = array + 1
        if number % 20 == 0:
            assert_same_bits(fetch(library, result), array)


@needs("jax")
def test_jax_waits_for_the_kernels() -> None:
    """A result is delivered while 64 MiB are on their way to it."""
    array = random_array(np.float32, (1 << 24,))
    stream = streams.own_stream(0)
    staging.to_device(array, 0, stream)  # so that the stream has something to do first
    view = memory.allocate("jax", array.shape, array.dtype, 0, stream)
    staging._ring(0).send(array, view.address, stream)
    result = memory.deliver(view)
    expected = array + array
    del view, array
    gc.collect()
    np.testing.assert_array_equal(np.asarray(result + result), expected)


@each_library
def test_our_array_goes_anywhere(library: str) -> None:
    """What callers of an unknown library get, taken by those that we know."""
    module = modules(library)
    array = random_array(np.float32)
    stream = streams.own_stream(0)
    result = memory.deliver(staging.to_device(array, 0, stream))
    if library == "torch":
        taken = module.from_dlpack(result)
    elif library == "cupy":
        taken = module.asarray(result)
    elif library == "jax":
        taken = module.dlpack.from_dlpack(result)
    else:
        taken = module.as_cuda_array(result)
    view = viewed(taken)
    assert view.address == result.__cuda_array_interface__["data"][0]
    del result
    gc.collect()
    assert_same_bits(fetch(library, taken), array)


@each_of("torch", "cupy", "numba")
def test_out_is_used(library: str) -> None:
    array = random_array(np.float32)
    out = put(library, np.zeros_like(array))
    q = viewed(put(library, array))
    view = memory.accept(out, array.shape, array.dtype, 0, (q,))
    staging._ring(0).send(array, view.address, view.stream)
    assert memory.deliver(view) is out
    assert_same_bits(fetch(library, out), array)
    with pytest.raises(nsa.errors.ShapeError, match="overlaps"):
        memory.accept(out, array.shape, array.dtype, 0, (view,))


@needs("torch")
def test_autograd_sees_writes_to_out() -> None:
    torch = modules("torch")
    weight = torch.ones(4, device="cuda", requires_grad=True)
    out = torch.ones(4, device="cuda")
    loss = (weight * out).sum()  # saves out for the backward pass
    memory.accept(out, (4,), np.dtype(np.float32), 0, ())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# CUDA graphs and temporaries ----------------------------------------------------------------------------


@needs("torch")
def test_a_call_is_captured_and_replayed() -> None:
    torch = modules("torch")
    q = torch.ones(1 << 16, device="cuda")
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        view = viewed(q)
        stream = memory.join((view,))
        temporary = memory.scratch(view.nbytes, 0, stream, "torch")
        out = memory.allocate("torch", view.shape, view.dtype, 0, stream)
        streams.call("cuMemcpyAsync", temporary.address, view.address, view.nbytes, stream)
        streams.call("cuMemcpyAsync", out.address, temporary.address, view.nbytes, stream)
        memory.release((view,), stream)
        result = memory.deliver(out)
    for number in range(3):
        q.fill_(number)
        graph.replay()
        assert bool((result == number).all())


def test_scratch_inside_a_graph_of_the_drivers() -> None:
    nbytes = 1 << 16
    stream = streams.own_stream(0)
    target = staging.to_device(np.zeros(nbytes, np.uint8), 0, stream)
    streams.call("cuStreamSynchronize", stream)
    mode = streams.driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    streams.call("cuStreamBeginCapture", stream, mode)
    try:
        assert streams.is_capturing(stream)
        with pytest.raises(nsa.errors.EngineError, match="CUDA graph"):
            memory.allocate("other", (4,), np.dtype(np.float32), 0, stream)
        temporary = memory.scratch(nbytes, 0, stream)
        streams.call("cuMemsetD8Async", temporary.address, 7, nbytes, stream)
        streams.call("cuMemcpyAsync", target.address, temporary.address, nbytes, stream)
        del temporary
        gc.collect()
    finally:
        graph = streams.call("cuStreamEndCapture", stream)
    assert not streams.is_capturing(stream)
    executable = streams.call("cuGraphInstantiate", graph, 0)
    for _ in range(3):
        streams.call("cuGraphLaunch", executable, stream)
    assert (peek(target) == 7).all()


@pytest.mark.parametrize("library", ["other", *[name for name in LIBRARIES if name in ("torch", "cupy")]])
def test_scratch_is_reused_in_stream_order(library: str) -> None:
    stream = interchange.current_stream(library, 0)
    addresses = set()
    for _ in range(50):
        temporary = memory.scratch(1 << 20, 0, stream, library)
        assert temporary.address % 256 == 0
        streams.call("cuMemsetD8Async", temporary.address, 1, 1 << 20, stream or 1)
        addresses.add(temporary.address)
        del temporary
    assert len(addresses) < 10


# NumPy arrays -------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("shape", [(), (3,), (2, 37, 24), (5, 700, 1000), (3, 3_000_001)], ids=str)
def test_staging(shape: tuple[int, ...], dtype: np.dtype) -> None:
    array = random_array(np.float32, shape).astype(dtype)
    stream = streams.own_stream(0)
    layouts = [array] if array.ndim < 2 else [array, array.swapaxes(0, -1), array[..., ::-2]]
    for layout in layouts:
        view = staging.to_device(layout, 0, stream)
        assert_same_bits(peek(view), layout)
        back = np.zeros((*layout.shape, 2), dtype)[..., 0]
        staging.to_host(view, back, stream)
        assert_same_bits(back, layout)


def test_staging_of_nothing() -> None:
    stream = streams.own_stream(0)
    view = staging.to_device(np.zeros((0, 4)), 0, stream)
    staging.to_host(view, np.zeros((0, 4)), stream)


def test_staging_from_many_threads() -> None:
    failures: list[str] = []

    def work(number: int) -> None:
        with streams.on_device(0):
            stream = streams.own_stream(0)
            array = np.full((1000, 1500), number, np.float32)
            for _ in range(5):
                view = staging.to_device(array, 0, stream)
                back = np.zeros_like(array)
                staging.to_host(view, back, stream)
                if not (back == number).all():
                    failures.append(f"thread {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# Several GPUs -------------------------------------------------------------------------------------------


@needs("torch")
def test_the_second_gpu() -> None:
    torch = modules("torch")
    if device_count() < 2:
        pytest.skip("no CUDA device number 1")
    tensor = torch.full((1000,), 3.0, device="cuda:1")
    torch.cuda.synchronize(1)
    view = viewed(tensor)
    assert view.device == 1
    with pytest.raises(nsa.errors.EngineError, match="q on GPU 0, k on GPU 1"):
        interchange.device_views(("q", "k"), (torch.zeros(3, device="cuda:0"), tensor))
    with streams.on_device(1):
        assert (peek(view) == 3).all()
        result = memory.allocate("torch", (5,), np.dtype(np.float32), 1, view.stream)
        assert result.owner.get_device() == 1
        staged = staging.to_device(np.ones(7), 1, streams.own_stream(1))
        assert streams.device_of_address(staged.address) == 1
        assert (peek(staged) == 1).all()
    assert torch.cuda.current_device() == 0


# Cost ---------------------------------------------------------------------------------------------------


@each_of("torch", "cupy")
def test_looking_at_arrays_is_cheap(library: str) -> None:
    """Three arrays and their streams in 10 us; what is usual is 3 to 5."""
    arrays = tuple(put(library, random_array(np.float16)) for _ in range(3))
    names = ("q", "k", "v")
    best = 1.0
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(200):
            views = interchange.device_views(names, arrays)
        best = min(best, (time.perf_counter() - begin) / 200)
    assert views is not None
    assert best < 10e-6, f"{best * 1e6:.1f} us"
