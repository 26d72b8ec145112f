"""Arrays of other libraries, seen where they lie: address, shape, strides, element type, device, stream.

Nothing is copied and no library is imported: an array is recognised by the module of its type, and if there
is such an array then its library is in ``sys.modules``. PyTorch and CuPy are asked for the address directly
(1 to 2 us an array), Numba and everything else through ``__cuda_array_interface__``, JAX and what has no
such interface through DLPack.

The element type is always the array's own: in the array interface PyTorch's bfloat16 is called float16.

Streams are handles as plain integers, 0 for the legacy default stream: see :mod:`streams`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, cast

import ml_dtypes
import numpy as np

from ..errors import ArgumentError, DtypeError, EngineError
from . import dlpack, streams
from .view import DeviceView

__all__ = ["current_stream", "device_view", "device_views"]

_FLOATS = "float16, bfloat16, float32, float64"


def device_view(value: Any, name: str = "array") -> DeviceView | None:
    """The array where it lies in GPU memory, or None if it lies on the host.

    Parameters
    ----------
    value : object
        Any array; also lists and what else NumPy takes, which lie on the host.
    name : str
        What it is called in a refusal.

    Examples
    --------
    >>> from numba_sparse_attn.cuda.interchange import device_view
    >>> device_view([1.0, 2.0]) is None
    True
    """
    kind = type(value)
    reader = _READERS.get(kind)
    if reader is None:
        reader = _READERS[kind] = _reader_of(kind)
    return reader(value, name)


def device_views(names: tuple[str, ...], values: tuple[Any, ...]) -> tuple[DeviceView, ...] | None:
    """Views of all arrays of a call, or None if all of them lie on the host.

    Parameters
    ----------
    names, values : tuples of equal length
        What they are called in a refusal, and the arrays.
    """
    views = tuple([device_view(value, name) for name, value in zip(names, values, strict=True)])
    first = views[0]
    device = -1 if first is None else first.device
    for view in views:
        if (-1 if view is None else view.device) != device:
            _refuse_mixture(names, views)
    return None if first is None else cast(tuple[DeviceView, ...], views)


def current_stream(library: str, device: int) -> int:
    """The stream on which a library's user expects work to be queued now.

    PyTorch and CuPy have a current stream. JAX has none that it would tell, so its arrays are worked on in a
    stream of ours and handed over by events. Everybody else's work goes to the legacy default stream.
    """
    if library == "torch":
        return _torch_stream()(device)
    if library == "cupy":
        return int(sys.modules["cupy"].cuda.get_current_stream(device).ptr)
    return streams.own_stream(device) if library == "jax" else 0


def _refuse_mixture(names: tuple[str, ...], views: tuple[DeviceView | None, ...]) -> None:
    places = [
        f"{name} in host memory" if view is None else f"{name} on GPU {view.device}"
        for name, view in zip(names, views, strict=True)
    ]
    if any(view is None for view in views):
        advice = "copy all of them to the GPU, or all of them to NumPy arrays"
    else:
        advice = "copy them to one GPU"
    raise EngineError(", ".join(places), "all arrays of a call in one memory", advice)


@functools.cache
def _require_cuda() -> None:
    """Refuse device arrays where the packages that run kernels on them are not installed."""

    def absent(module: str) -> bool:
        try:
            return find_spec(module) is None
        except ModuleNotFoundError:  # the package that should hold it
            return True

    missing = [
        package
        for package, module in (("numba-cuda", "numba_cuda"), ("cuda-core", "cuda.core"))
        if absent(module)
    ]
    if missing:
        raise EngineError(
            f"an array in GPU memory, without {' and '.join(missing)}",
            "arrays in host memory, unless the CUDA engine is installed",
            "install 'numba-sparse-attn[cuda13]' (or [cuda12]), or copy the arrays to NumPy arrays",
        )
    try:
        streams.call("cuInit", 0)
    except Exception as error:  # no driver library, or one that does not work
        raise EngineError(
            "an array that claims to be in GPU memory, on a machine without a working CUDA driver",
            "arrays in host memory",
            "pass NumPy arrays",
        ) from error


def _named_dtype(kind: Any) -> np.dtype[Any] | None:
    """A library's element type by its name, ``torch.bfloat16`` -> bfloat16; None if NumPy has none."""
    name = str(kind).rpartition(".")[2]
    try:
        return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    except TypeError:
        return None


def _dtype_refusal(kind: Any, name: str) -> DtypeError:
    return DtypeError(f"{name} of type {kind}", _FLOATS, "convert q, k and v to one of them")


def _host(value: Any, name: str) -> None:
    """NumPy arrays."""


# PyTorch ------------------------------------------------------------------------------------------------


@functools.cache
def _torch_stream() -> Callable[[int], int]:
    """PyTorch's current stream by device number: without making a Stream object where that can be had."""
    torch = sys.modules["torch"]
    raw: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return raw or (lambda device: int(torch.cuda.current_stream(device).cuda_stream))


def _torch_view(value: Any, name: str) -> DeviceView | None:
    if not value.is_cuda:
        if value.is_cpu:
            return None
        raise EngineError(
            f"{name} on {value.device}", "PyTorch tensors on CUDA devices and on the CPU", "move it to one"
        )
    _require_cuda()
    try:
        negated = value.is_neg()
        if negated:  # a lazy minus sign, which would not be seen at the address
            value = value.resolve_neg()
        # Not the array interface: it refuses tensors that require a gradient, which does not concern us.
        address = value.data_ptr()
        shape, strides, dtype = _torch_layout(value.shape, value.stride(), value.dtype)
    except RuntimeError as error:  # sparse tensors and those inside transforms have no memory
        raise _no_memory(value, name) from error
    if not address and value.numel():  # nor have fake ones
        raise _no_memory(value, name)
    if dtype is None:
        raise _dtype_refusal(value.dtype, name)
    device = value.get_device()
    return DeviceView(
        address,
        shape,
        strides,
        dtype,
        device,
        _torch_stream()(device),
        "torch",
        value,
        not (negated or value.requires_grad),
    )


def _no_memory(value: Any, name: str) -> ArgumentError:
    return ArgumentError(
        f"{name} as a {type(value).__name__} without memory of its own",
        "dense PyTorch tensors, outside torch.compile and torch.func transforms",
        "pass a dense tensor with values",
    )


@functools.lru_cache(maxsize=1024)
def _torch_layout(
    shape: tuple[int, ...], strides: tuple[int, ...], kind: Any
) -> tuple[tuple[int, ...], tuple[int, ...], np.dtype[Any] | None]:
    """Shape as a plain tuple, strides in bytes and NumPy's element type; remembered, which saves 0.3 us."""
    dtype = _named_dtype(kind)
    size = 0 if dtype is None else dtype.itemsize
    return tuple(shape), tuple([stride * size for stride in strides]), dtype


# CuPy ---------------------------------------------------------------------------------------------------


def _cupy_view(value: Any, name: str) -> DeviceView:
    _require_cuda()
    memory = value.data
    device = memory.device_id
    view = DeviceView(
        memory.ptr,
        value.shape,
        value.strides,
        value.dtype,
        device,
        sys.modules["cupy"].cuda.get_current_stream(device).ptr,
        "cupy",
        value,
    )
    return _aligned(view, name)


def _aligned(view: DeviceView, name: str) -> DeviceView:
    """Refuse what a load of one element could not reach; only interfaces that count in bytes allow that."""
    size = view.dtype.itemsize
    remainder = view.address % size
    for stride in view.strides:
        remainder |= stride % size
    if remainder:
        raise ArgumentError(
            f"{name} at address {view.address:#x} with strides {view.strides} and elements of {size} bytes",
            "arrays whose address and strides are multiples of the element size",
            f"pass a copy of {name}",
        )
    return view


# Everything else ----------------------------------------------------------------------------------------


def _numba_view(value: Any, name: str) -> DeviceView | None:
    return _interface_view(value, value.__cuda_array_interface__, name, "numba")


def _protocol_view(value: Any, name: str) -> DeviceView | None:
    """Objects of unknown libraries, by what they speak."""
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is not None:
        return _interface_view(value, interface, name, "other")
    if hasattr(value, "__dlpack_device__"):
        return _dlpack_view(value, name, "other")
    return None


def _interface_view(value: Any, interface: dict[str, Any], name: str, library: str) -> DeviceView:
    """Version 2 and 3 of the CUDA array interface."""
    _require_cuda()
    if interface.get("mask") is not None:
        raise ArgumentError(
            f"{name} with a mask", "plain arrays", "pass the mask as a pattern and the data without it"
        )
    typestr = interface["typestr"]
    if str(getattr(value, "dtype", "")).endswith("bfloat16"):
        dtype = np.dtype(ml_dtypes.bfloat16)
    elif typestr[1] == "V":  # two bytes of nobody knows what
        raise _dtype_refusal(typestr, name)
    else:
        dtype = np.dtype(typestr)
    address, read_only = interface["data"]
    address = int(address or 0)
    shape = tuple(interface["shape"])
    strides = interface.get("strides")
    stream = int(interface.get("stream") or 0)  # an array without one is ready on any
    view = DeviceView(
        address,
        shape,
        dlpack.contiguous_strides(shape, dtype.itemsize) if strides is None else tuple(strides),
        dtype,
        _device_of(value, address),
        0 if stream == 1 else stream,
        library,
        value,
        not read_only,
    )
    return _aligned(view, name)


def _device_of(value: Any, address: int) -> int:
    """Number of the GPU whose memory an address lies in; the interface does not say."""
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[1])
    return streams.device_of_address(address)


def _jax_view(value: Any, name: str) -> DeviceView | None:
    if "Tracer" in type(value).__name__:
        raise ArgumentError(
            f"{name} as a traced JAX value",
            "JAX arrays with values",
            "call outside jax.jit, jax.grad and jax.vmap",
        )
    if not hasattr(value, "__dlpack_device__"):
        return None
    if value.is_deleted():
        raise ArgumentError(
            f"{name} as a deleted or donated JAX array", "JAX arrays with values", "pass another"
        )
    return _dlpack_view(value, name, "jax")


def _dlpack_view(value: Any, name: str, library: str) -> DeviceView | None:
    """Arrays that speak DLPack only. Their capsule is kept, unread by anyone else, as long as the view."""
    kind, device = _ask(value.__dlpack_device__, name)
    if kind in (dlpack.CPU, dlpack.CUDA_HOST):
        return None
    if kind not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        raise EngineError(
            f"{name} in memory of DLPack kind {int(kind)}",
            "arrays on CUDA devices and in host memory",
            "copy it to a NumPy array",
        )
    _require_cuda()
    stream = current_stream(library, int(device))
    # The producer makes this stream wait for the array. DLPack has no 0: 1 is the default stream.
    try:
        capsule = _ask(value.__dlpack__, name, stream=stream or 1, max_version=(1, 0))
    except TypeError:  # a producer from before DLPack 1.0
        capsule = _ask(value.__dlpack__, name, stream=stream or 1)
    contents = dlpack.read_capsule(capsule, name)
    view = DeviceView(
        contents.address,
        contents.shape,
        contents.strides,
        contents.dtype,
        contents.device,
        stream,
        library,
        value,
        contents.writable and library != "jax",  # a JAX array never changes
        capsule,
    )
    return _aligned(view, name)


def _ask(method: Callable[..., Any], name: str, **keywords: Any) -> Any:
    """Call a DLPack method of an array; what it raises for itself becomes a refusal."""
    try:
        return method(**keywords)
    except (BufferError, RuntimeError, ValueError) as error:
        raise ArgumentError(
            f"{name} that does not let go of its memory ({error})",
            "arrays that lie whole on one device",
            "gather a sharded array on one device",
        ) from error


# Which reader -------------------------------------------------------------------------------------------

_Reader = Callable[[Any, str], DeviceView | None]

#: Readers by the type of the array, filled as types are met.
_READERS: dict[type, _Reader] = {np.ndarray: _host}


def _reader_of(kind: type) -> _Reader:
    """The reader of a type, by the library that it or a base class comes from."""
    for base in kind.__mro__:
        root = base.__module__.partition(".")[0]
        if root == "torch" and base.__name__ == "Tensor":
            return _torch_view
        if root == "cupy" and base.__name__ == "ndarray":
            return _cupy_view
        if root in ("jax", "jaxlib"):
            return _jax_view
        if root == "numba" and hasattr(base, "__cuda_array_interface__"):
            return _numba_view
        if base is np.ndarray:
            return _host
    return _protocol_view
