"""From the arrays of a call to an engine and back: order of streams, memory for results, staging.

Arrays on a GPU are used where they lie, on their own stream, and results come back as the caller's kind
of array without waiting. NumPy arrays are copied to the GPU and back; over a PCIe 5 bus that moves about
40 GB/s, so it pays only where a pair costs much more than its bytes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import arrays
from ..formats.work import Request
from . import memory, staging, streams
from .interchange import device_views
from .view import DeviceView

__all__ = ["backward", "forward", "why_unavailable"]

_MODULES = {"cuda-warp": "numba_sparse_attn.cuda.warp"}

#: From the sizes of a call to what an engine is told; refuses sizes that were not planned for.
RequestMaker = Callable[[arrays.Dimensions], Request]


def why_unavailable() -> str | None:
    """Why no CUDA engine can run on this machine, or None if one can."""
    try:
        from cuda.core import Device
        from numba import cuda  # noqa: F401
    except ImportError as error:
        return f"the package {error.name} is not installed: pip install 'numba-sparse-attn[cuda13]'"
    try:
        count = len(Device.get_all_devices())
    except Exception as error:  # whatever a machine without a driver makes of the question
        return f"no CUDA driver answers ({error})"
    return None if count else "there is no CUDA device"


def engine_module(name: str) -> Any:
    """The module of a CUDA engine."""
    return importlib.import_module(_MODULES[name])


def _inputs(names: tuple[str, ...], values: tuple[Any, ...]) -> tuple[tuple[DeviceView, ...], bool]:
    """Views of the arrays, and whether they had to be copied from the host (to GPU 0)."""
    views = device_views(names, values)
    if views is not None:
        return views, False
    hosts = [arrays.as_array(value, name) for name, value in zip(names, values, strict=True)]
    for array, name in zip(hosts, names, strict=True):
        arrays.check_dtype(array.dtype, name)
    stream = streams.own_stream(0)
    with streams.on_device(0):
        return tuple(staging.to_device(array, 0, stream) for array in hosts), True


def _outputs(
    shapes: list[tuple[tuple[int, ...], np.dtype[Any]]], like: DeviceView, stream: int, staged: bool
) -> list[DeviceView]:
    library = "other" if staged else like.library
    return [memory.allocate(library, shape, dtype, like.device, stream) for shape, dtype in shapes]


def _results(views: list[DeviceView], stream: int, staged: bool) -> list[Any]:
    """What the caller gets: his own kind of array."""
    if not staged:
        return [memory.deliver(view) for view in views]
    hosts: list[npt.NDArray[Any]] = []
    for view in views:
        host = np.empty(view.shape, view.dtype)
        staging.to_host(view, host, stream)
        hosts.append(host)
    return hosts


def _headed(views: tuple[DeviceView, ...] | list[DeviceView], flat: bool) -> list[DeviceView]:
    return [view.with_leading_axis() for view in views] if flat else list(views)


def forward(
    engine: str, make_request: RequestMaker, q: Any, k: Any, v: Any, *, return_lse: bool, out: Any
) -> Any:
    """A forward call on a GPU; see :meth:`numba_sparse_attn.Plan.__call__`."""
    inputs, staged = _inputs(("q", "k", "v"), (q, k, v))
    dimensions = arrays.check_arrays(*inputs)
    request = make_request(dimensions)
    shape = (*inputs[0].shape[:-1], request.value_dim)
    device = inputs[0].device
    with streams.on_device(device):
        if out is None or staged:
            if out is not None:
                arrays.output_array(out, shape, request.dtype, ())
            stream = memory.join(inputs)
            (result,) = _outputs([(shape, request.dtype)], inputs[0], stream, staged)
        else:
            result = memory.accept(out, shape, request.dtype, device, inputs)
            inputs = (result, *inputs)
            stream = memory.join(inputs)
        views = [result]
        if return_lse:
            views += _outputs([(shape[:-1], request.accumulator)], inputs[0], stream, staged)
        lse = views[1] if return_lse else None
        if result.size or (lse is not None and lse.size):
            headed = _headed([*inputs[-3:], result], dimensions.flat)
            lse_view = None if lse is None else _headed([lse], dimensions.flat)[0]
            engine_module(engine).forward(request, *headed, lse_view)
        memory.release(inputs, stream)
        results = _results(views, stream, staged)
    if staged and out is not None:
        out[...] = results[0]
        results[0] = out
    elif out is not None:
        results[0] = out
    return tuple(results) if return_lse else results[0]


def backward(
    engine: str, make_request: RequestMaker, dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any
) -> tuple[Any, Any, Any]:
    """A backward call on a GPU; see :meth:`numba_sparse_attn.Plan.backward`."""
    names = ("dout", "q", "k", "v", "out", "lse")
    inputs, staged = _inputs(names, (dout, q, k, v, out, lse))
    dout_view, q_view, k_view, v_view, out_view, lse_view = inputs
    dimensions = arrays.check_arrays(q_view, k_view, v_view)
    request = make_request(dimensions)
    shape = (*q_view.shape[:-1], request.value_dim)
    for view, name in ((dout_view, "dout"), (out_view, "out")):
        arrays.check_gradient(view, shape, request.dtype, name)
    arrays.check_gradient(lse_view, shape[:-1], request.accumulator, "lse")
    with streams.on_device(q_view.device):
        stream = memory.join((q_view, *inputs))
        shapes = [(view.shape, request.dtype) for view in (q_view, k_view, v_view)]
        gradients = _outputs(shapes, q_view, stream, staged)
        if request.batch:
            headed = _headed([*inputs, *gradients], dimensions.flat)
            engine_module(engine).backward(request, *headed)
        memory.release(inputs, stream)
        dq, dk, dv = _results(gradients, stream, staged)
    return dq, dk, dv
