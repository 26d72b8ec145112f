"""Recognising other libraries' arrays, with stand-ins for the libraries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn.cuda import dlpack, interchange, streams
from numba_sparse_attn.cuda.interchange import device_view, device_views

from . import fake_libraries as fake

DTYPES = [np.dtype(np.float16), fake.BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
ERRORS = nsa.errors


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand-ins in ``sys.modules``; streams 70 + device for PyTorch, 80 for CuPy, 90 for ours."""
    monkeypatch.setitem(sys.modules, "torch", fake.torch_module({0: 70, 1: 71}))
    monkeypatch.setitem(sys.modules, "cupy", fake.cupy_module({0: 80, 1: 81}))
    monkeypatch.setattr(interchange, "_require_cuda", lambda: None)
    monkeypatch.setattr(streams, "own_stream", lambda device: 90 + device)
    monkeypatch.setattr(streams, "device_of_address", lambda address: 0)
    known = dict(interchange._READERS)
    interchange._torch_stream.cache_clear()
    yield
    interchange._torch_stream.cache_clear()
    interchange._READERS.clear()
    interchange._READERS.update(known)


def array_of(dtype: Any = np.float32, shape: tuple[int, ...] = (2, 6, 4)) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch(dtype: np.dtype) -> None:
    array = array_of(dtype).transpose(1, 0, 2)[::2]
    tensor = fake.Tensor(array, device=1)
    view = device_view(tensor)
    assert view is not None
    assert (view.address, view.shape, view.strides) == (array.ctypes.data, array.shape, array.strides)
    assert view.dtype == dtype and view.dtype.name == dtype.name
    assert (view.device, view.stream, view.library, view.writable) == (1, 71, "torch", True)
    assert view.owner is tensor and type(view.shape) is tuple


def test_torch_subclasses_are_tensors() -> None:
    class Parameter(fake.Tensor):
        __module__ = "somebody.model"

    view = device_view(Parameter(array_of(), requires_grad=True))
    assert view is not None and view.library == "torch"
    assert not view.writable  # autograd would not see the write


def test_torch_stream_without_the_private_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake.torch_module({0: 5}, raw=False))
    interchange._torch_stream.cache_clear()
    assert interchange.current_stream("torch", 0) == 5


def test_torch_on_the_host_is_not_ours() -> None:
    assert device_view(fake.Tensor(array_of(), "cpu")) is None


def test_lazy_minus_sign_is_resolved() -> None:
    view = device_view(fake.NegatedTensor(array_of()))
    assert view is not None and isinstance(view.owner, fake.Tensor)
    np.testing.assert_array_equal(view.owner.array, -array_of())
    assert not view.writable  # a copy: writing to it would be lost


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        (fake.Tensor(array_of(), "mps"), ERRORS.EngineError, "q on mps:0"),
        (fake.SparseTensor(array_of()), ERRORS.ArgumentError, "q as a SparseTensor without memory"),
        (fake.FakeTensor(array_of()), ERRORS.ArgumentError, "q as a FakeTensor without memory"),
    ],
)
def test_tensors_without_cuda_memory_are_refused(tensor: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        device_view(tensor, "q")


def test_torch_types_unknown_to_numpy_are_refused() -> None:
    tensor = fake.Tensor(array_of())
    tensor.dtype = fake.TorchDtype("quint4x2")
    with pytest.raises(ERRORS.DtypeError, match=r"q of type torch\.quint4x2"):
        device_view(tensor, "q")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cupy(dtype: np.dtype) -> None:
    array = array_of(dtype)[:, ::-1]
    value = fake.CupyArray(array, device=1)
    view = device_view(value)
    assert view is not None
    assert (view.address, view.shape, view.strides) == (array.ctypes.data, array.shape, array.strides)
    assert (view.dtype, view.device, view.stream, view.library) == (dtype, 1, 81, "cupy")
    assert view.owner is value


def test_unaligned_arrays_are_refused() -> None:
    with pytest.raises(ERRORS.ArgumentError, match="multiples of the element size"):
        device_view(fake.CupyArray(array_of(), address=0x1002))
    rows = np.zeros((4, 10), np.uint8)
    odd = np.ndarray((4, 2), np.float32, rows, strides=(10, 4))
    with pytest.raises(ERRORS.ArgumentError, match="multiples of the element size"):
        device_view(fake.InterfaceArray(odd))


@pytest.mark.parametrize(
    ("kind", "library"), [(fake.NumbaArray, "numba"), (fake.InterfaceArray, "other")], ids=["numba", "other"]
)
@pytest.mark.parametrize(("stream", "handle"), [(None, 0), (1, 0), (2, 2), (0x5500, 0x5500)])
def test_array_interface(kind: type, library: str, stream: int | None, handle: int) -> None:
    for array in (array_of(), array_of().transpose(2, 1, 0)):
        view = device_view(kind(array, stream=stream))
        assert view is not None
        assert (view.address, view.shape, view.strides) == (array.ctypes.data, array.shape, array.strides)
        assert (view.dtype, view.stream, view.library, view.writable) == (array.dtype, handle, library, True)


def test_array_interface_details() -> None:
    read_only = fake.InterfaceArray(array_of(), data=(0x2000, True))
    view = device_view(read_only)
    assert view is not None and view.address == 0x2000 and not view.writable
    empty = device_view(fake.InterfaceArray(array_of(shape=(0, 4)), data=(None, False)))
    assert empty is not None and empty.address == 0 and empty.size == 0
    with pytest.raises(ERRORS.ArgumentError, match="q with a mask"):
        device_view(fake.InterfaceArray(array_of(), mask=array_of()), "q")


def test_bfloat16_is_told_by_the_array_and_not_by_the_interface() -> None:
    """An interface that calls bfloat16 float16 must not turn one into the other."""
    array = array_of(fake.BFLOAT16)
    for typestr in ("<f2", "<V2"):
        view = device_view(fake.InterfaceArray(array, typestr=typestr))
        assert view is not None and view.dtype == fake.BFLOAT16
    nameless = fake.InterfaceArray(array)
    del nameless.dtype
    with pytest.raises(ERRORS.DtypeError, match="of type <V2"):
        device_view(nameless)


@pytest.mark.parametrize("versions", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_jax(dtype: np.dtype, versions: bool) -> None:
    array = array_of(dtype)
    value = fake.ArrayImpl(array, device=1, versions=versions)
    view = device_view(value)
    assert view is not None
    assert (view.address, view.shape, view.strides) == (array.ctypes.data, array.shape, array.strides)
    assert (view.dtype, view.device, view.stream, view.library) == (dtype, 1, 91, "jax")
    assert value.asked[-1]["stream"] == 91  # the producer makes our stream wait
    assert view.owner is value and view.hold is not None
    assert not view.writable


def test_other_dlpack_arrays_are_asked_for_on_the_default_stream() -> None:
    value = fake.DlpackArray(array_of(), kind=dlpack.CUDA_MANAGED)
    view = device_view(value)
    assert view is not None and value.asked == [{"stream": 1, "max_version": (1, 0)}]
    assert (view.stream, view.library, view.writable) == (0, "other", True)


def test_jax_values_without_memory_are_refused() -> None:
    with pytest.raises(ERRORS.ArgumentError, match="k as a traced JAX value"):
        device_view(fake.DynamicJaxprTracer(), "k")
    with pytest.raises(ERRORS.ArgumentError, match="only supported for unsharded"):
        device_view(fake.ShardedArrayImpl(array_of()), "k")
    deleted = fake.ArrayImpl(array_of())
    deleted.deleted = True
    with pytest.raises(ERRORS.ArgumentError, match="deleted"):
        device_view(deleted, "k")


def test_other_accelerators_are_refused() -> None:
    with pytest.raises(ERRORS.EngineError, match="DLPack kind 10"):
        device_view(fake.DlpackArray(array_of(), kind=10))


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3),
        np.zeros(3).view(np.recarray),
        np.float32(1),
        [1.0, 2.0],
        (),
        None,
        fake.ArrayImpl(array_of(), dlpack.CPU),
        fake.DlpackArray(array_of(), dlpack.CUDA_HOST),
        memoryview(b"1234"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_host_values_are_not_ours(value: Any) -> None:
    assert device_view(value) is None


def test_reading_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sys.modules)
    device_view(fake.Tensor(array_of()))
    device_view(fake.ArrayImpl(array_of()))
    device_view(fake.NumbaArray(array_of()))
    assert {name.partition(".")[0] for name in set(sys.modules) - before} <= {"numba_sparse_attn"}


def test_views_of_a_call() -> None:
    tensors = tuple(fake.Tensor(array_of()) for _ in range(3))
    views = device_views(("q", "k", "v"), tensors)
    assert views is not None and [view.owner for view in views] == list(tensors)
    assert device_views(("q", "k"), (np.zeros(2), [1.0])) is None


@pytest.mark.parametrize(
    ("values", "message", "advice"),
    [
        ((fake.Tensor(array_of()), np.zeros(3)), "q on GPU 0, k in host memory", "copy all"),
        ((np.zeros(3), fake.Tensor(array_of(), device=1)), "q in host memory, k on GPU 1", "copy all"),
        ((fake.Tensor(array_of()), fake.CupyArray(array_of(), 1)), "q on GPU 0, k on GPU 1", "to one GPU"),
    ],
)
def test_mixed_places_are_refused(values: tuple[Any, ...], message: str, advice: str) -> None:
    with pytest.raises(ERRORS.EngineError, match=message) as caught:
        device_views(("q", "k"), values)
    assert advice in caught.value.advice


def test_current_streams() -> None:
    found = [interchange.current_stream(name, 1) for name in ("torch", "cupy", "jax", "numba", "other")]
    assert found == [71, 81, 91, 0, 0]


def test_view_helpers() -> None:
    array = array_of().transpose(1, 0, 2)[::-1]
    view = device_view(fake.CupyArray(array))
    assert view is not None
    assert (view.ndim, view.size, view.nbytes) == (array.ndim, array.size, array.nbytes)
    more = view.with_leading_axis()
    assert more.shape == array[None].shape and more.strides[1:] == array.strides
    assert more.address == view.address and more.owner is view.owner
    assert view.extent() == np.lib.array_utils.byte_bounds(array)
    empty = device_view(fake.CupyArray(array_of(shape=(0, 3)), address=64))
    assert empty is not None and empty.extent() == (64, 64)


class TestWithoutTheEngine:
    """Device arrays on a machine where the CUDA packages are not installed."""

    @pytest.fixture(autouse=True)
    def missing(self, monkeypatch: pytest.MonkeyPatch, libraries: None) -> None:
        monkeypatch.undo()  # the packages' absence is the point here
        monkeypatch.setitem(sys.modules, "torch", fake.torch_module({0: 70}))
        monkeypatch.setitem(sys.modules, "cupy", fake.cupy_module({0: 80}))

    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            (set(), "numba-cuda and cuda-core"),
            ({"cuda.core"}, "without numba-cuda;"),
            ({"numba_cuda"}, "without cuda-core;"),
        ],
        ids=["neither", "core", "numba"],
    )
    def test_refusal_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch, found: set[str], expected: str
    ) -> None:
        def find_spec(name: str) -> object | None:
            if name == "cuda.core" and name not in found:
                raise ModuleNotFoundError(name)
            return object() if name in found else None

        monkeypatch.setattr(interchange, "find_spec", find_spec)
        interchange._require_cuda.cache_clear()
        for value in (
            fake.Tensor(array_of()),
            fake.CupyArray(array_of()),
            fake.InterfaceArray(array_of()),
            fake.ArrayImpl(array_of()),
        ):
            with pytest.raises(ERRORS.EngineError, match=expected) as caught:
                device_view(value)
            assert "cuda13" in caught.value.advice
        assert device_view(np.zeros(2)) is None
        interchange._require_cuda.cache_clear()
