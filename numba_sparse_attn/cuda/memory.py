"""GPU memory for results and temporaries, and the order of streams around a call.

A result comes from the caller's own library: PyTorch's and CuPy's allocators are as fast as ours, know the
stream, and know what to do while a CUDA graph is captured. JAX and unknown libraries get memory from
the driver's stream-ordered pool, handed over by DLPack or by the array interface.

A call on device arrays goes like this::

    views = interchange.device_views(("q", "k", "v"), (q, k, v))
    with streams.on_device(views[0].device):
        stream = memory.join(views)
        out = memory.allocate(views[0].library, shape, dtype, views[0].device, stream)
        ...  # launch on `stream`
        memory.release(views, stream)
        return memory.deliver(out)

With a user's ``out=`` it is ``out = memory.accept(...)`` first, and `out` takes part in the order of streams:
``stream = memory.join((out, *views))`` and ``memory.release((out, *views), stream)``.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
import threading
from collections import deque
from typing import Any

import numpy as np

from ..errors import ArgumentError, DtypeError, EngineError, ShapeError
from . import dlpack, streams
from .interchange import device_view
from .view import DeviceView

__all__ = ["DeviceArray", "accept", "allocate", "deliver", "join", "release", "scratch"]


class DeviceArray:
    """A C-contiguous array in GPU memory of ours, for callers whose library we do not know.

    Any library takes it without a copy, by ``__cuda_array_interface__`` or DLPack; ``numba.cuda`` and
    ``cupy.asarray`` by the former, ``jax.dlpack.from_dlpack`` by the latter. Its memory is freed
    in the order of the stream it was made on.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy dtype
    """

    __slots__ = ("__weakref__", "_buffer", "_device", "_stream", "dtype", "shape")

    def __init__(
        self, buffer: _PoolMemory, shape: tuple[int, ...], dtype: np.dtype[Any], device: int, stream: int
    ) -> None:
        self._buffer = buffer
        self.shape = shape
        self.dtype = dtype
        self._device = device
        self._stream = stream

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype.name}, device={self._device})"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3, with the stream on which the array is ready."""
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "strides": None,
            "data": (self._buffer.handle, False),
            "stream": self._stream or 1,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and number of the device."""
        return dlpack.CUDA, self._device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule, after making the consumer's `stream` wait for the array; -1 means that it need not."""
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("only a view on the same device can be exported")
        if stream != -1:
            with streams.on_device(self._device):
                streams.wait(stream or 0, self._stream, self._device)
        return dlpack.make_capsule(
            self._buffer.handle,
            self.shape,
            self.dtype,
            *self.__dlpack_device__(),
            self._buffer,
            versioned=max_version is not None and max_version[0] >= 1,
        )


# Results ------------------------------------------------------------------------------------------------


def allocate(
    library: str, shape: tuple[int, ...], dtype: np.dtype[Any], device: int, stream: int
) -> DeviceView:
    """Memory for a result, not initialised; :func:`deliver` turns it into what the caller gets.

    Parameters
    ----------
    library : {"torch", "cupy", "jax", "numba", "other"}
        Whose array it will be.
    shape, dtype
    device : int
        Must be the current device: see :class:`streams.on_device`.
    stream : int
        On which it will be written. PyTorch and CuPy allocate on their current stream, which it is.
    """
    if library == "torch":
        return _allocate_torch(shape, dtype, device, stream)
    if library == "cupy":
        return _allocate_cupy(shape, dtype, device, stream)
    if library == "numba":
        return _allocate_numba(shape, dtype, device, stream)
    if streams.is_capturing(stream):
        raise EngineError(
            "a result to be allocated while the stream is captured into a CUDA graph",
            "PyTorch tensors and CuPy arrays, whose allocators take part in a capture, or out=",
            "allocate the result beforehand and pass it as out=",
        )
    buffer = _PoolMemory(math.prod(shape) * dtype.itemsize, device, stream)
    array = DeviceArray(buffer, shape, dtype, device, stream)
    return _contiguous(buffer.handle, shape, dtype, device, stream, library, array)


def deliver(view: DeviceView) -> Any:
    """The result as the caller's kind of array, once everything that writes it has been queued.

    A JAX array has to be made now and not earlier, because it counts as ready in the order of the stream in
    which it is made.
    """
    if view.library == "jax":
        return importlib.import_module("jax.dlpack").from_dlpack(view.owner)
    return view.owner


def accept(
    out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], device: int, inputs: tuple[DeviceView, ...]
) -> DeviceView:
    """A view of the array that a user passed as ``out=``, or a refusal.

    Parameters
    ----------
    out : object
    shape, dtype, device
        What it must have.
    inputs : tuple of DeviceView
        What it must not overlap.
    """
    view = device_view(out, "out")
    if view is None:
        raise EngineError(
            f"out of type {type(out).__name__} in host memory, with inputs on GPU {device}",
            "an array on the GPU of the inputs",
            "leave out= away to get a new one",
        )
    if view.device != device:
        raise EngineError(
            f"out on GPU {view.device} with inputs on GPU {device}",
            "all arrays of a call on one GPU",
            "move out",
        )
    if view.shape != shape or view.dtype != dtype:
        raise ShapeError(
            f"out with shape {view.shape} and type {view.dtype.name}",
            f"shape {shape} and type {dtype.name}",
            "allocate it so",
        )
    if not view.writable:
        raise ArgumentError(
            f"out as a {type(out).__name__} that must not be written in place",
            "arrays that are not read-only, not JAX's, and require no gradient",
            "leave out= away to get a new array",
        )
    if _overlaps_itself(shape, view.strides, dtype.itemsize):
        raise ShapeError(
            f"out with shape {shape} and strides {view.strides}",
            "one place in memory for every element",
            "pass a contiguous array",
        )
    low, high = view.extent()
    for other in inputs:
        begin, end = other.extent()
        if low < end and begin < high:
            raise ShapeError("out that overlaps an input", "memory of its own", "pass a fresh array")
    if view.library == "torch":
        # Autograd must notice if it has saved this tensor: the kernel writes behind PyTorch's back.
        sys.modules["torch"].autograd.graph.increment_version(out)
    return view


@functools.lru_cache(maxsize=1024)
def _overlaps_itself(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether two elements may share memory: each axis must step over everything of the faster ones."""
    reach = itemsize
    axes = sorted((abs(step), length) for step, length in zip(strides, shape, strict=True))
    for step, length in axes:
        if length > 1:
            if step < reach:
                return 0 not in shape
            reach += step * (length - 1)
    return False


def _allocate_torch(shape: tuple[int, ...], dtype: np.dtype[Any], device: int, stream: int) -> DeviceView:
    result = sys.modules["torch"].empty(shape, dtype=_torch_dtype(dtype), device=_torch_device(device))
    return _contiguous(result.data_ptr(), shape, dtype, device, stream, "torch", result)


@functools.cache
def _torch_dtype(dtype: np.dtype[Any]) -> Any:
    return getattr(sys.modules["torch"], dtype.name)


@functools.cache
def _torch_device(device: int) -> Any:
    return sys.modules["torch"].device("cuda", device)


def _allocate_cupy(shape: tuple[int, ...], dtype: np.dtype[Any], device: int, stream: int) -> DeviceView:
    try:
        result = sys.modules["cupy"].empty(shape, dtype)
    except (TypeError, ValueError) as error:
        raise DtypeError(
            f"a result of type {dtype.name} for CuPy, which does not make such arrays ({error})",
            "the element types that the installed CuPy knows",
            "update CuPy, or pass out= as another library's array",
        ) from error
    return _contiguous(result.data.ptr, shape, dtype, device, stream, "cupy", result)


def _allocate_numba(shape: tuple[int, ...], dtype: np.dtype[Any], device: int, stream: int) -> DeviceView:
    cuda = sys.modules["numba.cuda"]
    with cuda.gpus[device]:
        result = cuda.device_array(shape, dtype, stream=cuda.external_stream(stream) if stream else 0)
    address = result.__cuda_array_interface__["data"][0]
    return _contiguous(address, shape, dtype, device, stream, "numba", result)


def _contiguous(
    address: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    device: int,
    stream: int,
    library: str,
    owner: Any,
) -> DeviceView:
    strides = dlpack.contiguous_strides(shape, dtype.itemsize)
    return DeviceView(address, shape, strides, dtype, device, stream, library, owner)


# Temporaries --------------------------------------------------------------------------------------------

_BYTE = np.dtype(np.uint8)


def scratch(nbytes: int, device: int, stream: int, library: str = "other") -> DeviceView:
    """Temporary memory, aligned to 256 bytes. Drop the view when its last kernel has been queued.

    It may be dropped that early because it is freed in the order of the stream. Callers with a PyTorch or
    CuPy array get it from that library, so that there is one pool of free memory and not two.
    """
    nbytes = max(nbytes, 1)
    if library in ("torch", "cupy"):
        return allocate(library, (nbytes,), _BYTE, device, stream)
    if streams.is_capturing(stream):
        buffer = _graph_memory(device).allocate(nbytes, stream=streams.stream_object(stream, device))
    else:
        buffer = _PoolMemory(nbytes, device, stream)
    return _contiguous(int(buffer.handle), (nbytes,), _BYTE, device, stream, "other", buffer)


class _PoolMemory:
    """Memory from the driver's pool, for a stream that is not captured, though another one may be.

    It dies wherever its last user does: in any thread, and while anybody captures a graph, which an
    ordinary call to free it would spoil.
    """

    __slots__ = ("__weakref__", "_buffer", "_device", "handle")

    def __init__(self, nbytes: int, device: int, stream: int) -> None:
        with streams.beside_capture():
            order = streams.stream_object(stream, device)
            self._buffer = _pool(device).allocate(max(nbytes, 1), stream=order)
        self._device = device
        self.handle = int(self._buffer.handle)

    def __del__(self) -> None:
        if not sys.is_finalizing() and hasattr(self, "_buffer"):
            with streams.on_device(self._device), streams.beside_capture():
                del self._buffer


@functools.cache
def _pool(device: int) -> Any:
    """The driver's own pool of a GPU, which other users of stream-ordered memory share."""
    from cuda.core import DeviceMemoryResource

    return DeviceMemoryResource(device)


@functools.cache
def _graph_memory(device: int) -> Any:
    """What allocates inside a captured graph."""
    from cuda.core import GraphMemoryResource

    return GraphMemoryResource(device)


# The order of streams -----------------------------------------------------------------------------------

#: Capsules of arrays that a queued kernel still reads, with the event that follows it.
_HELD: deque[tuple[Any, list[Any]]] = deque()
_HELD_LOCK = threading.Lock()


def join(views: tuple[DeviceView, ...]) -> int:
    """The stream to run a call on: the first array's, after it has been made to wait for the others'."""
    first = views[0]
    stream = first.stream
    for view in views:
        if view.stream != stream:
            streams.wait(stream, view.stream, first.device)
    if _HELD:
        _drop_held()
    return stream


def release(views: tuple[DeviceView, ...], stream: int) -> None:
    """Say, after the last kernel of a call has been queued on `stream`, that its inputs are read no more.

    An array of another stream may be overwritten or freed in the order of that stream, so that stream waits.
    An array that came by DLPack may be given back at any time, so its capsule is kept until the kernels have
    run; it is dropped by a later call, since a callback from the device could not take Python's lock.
    """
    held = []
    for view in views:
        if view.stream != stream:
            streams.wait(view.stream, stream, view.device)
        if view.hold is not None:
            held.append(view.hold)
    if held:
        event = streams.stream_object(stream, views[0].device).record()
        with _HELD_LOCK:
            _HELD.append((event, held))


def _drop_held() -> None:
    """Give back what the kernels of earlier calls have finished reading."""
    finished = []
    with streams.beside_capture():  # to ask an event is forbidden, and giving back may free memory
        with _HELD_LOCK:
            while _HELD and _HELD[0][0].is_done:
                finished.append(_HELD.popleft())
        finished.clear()  # without the lock: giving back runs other libraries' code
