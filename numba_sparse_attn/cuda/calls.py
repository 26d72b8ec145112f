"""From the arrays of a call to an engine and back: order of streams, memory for results, staging.

Arrays on a GPU are used where they lie, on their own stream, and results come back as the caller's kind
of array without waiting. NumPy arrays are copied to the GPU and back, in pieces: see :mod:`staging`.

A call is made of what depends on shapes and types alone (checks, sizes, the request and what the engine
keeps in it) and of what is new each time (addresses, memory for results, launches). The former is worked
out when such a call is first met and looked up afterwards, so a repeated call takes the same path as the
first, with less to do on it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .. import arrays
from ..formats.changes import Scored
from ..formats.work import Request
from ..normalisers import SoftmaxPlusOne
from . import memory, plus_one, staging, streams
from .interchange import device_views
from .launch import target_of
from .view import DeviceView, require_contiguous

__all__ = ["backward", "engine_module", "forward", "why_unavailable"]

_MODULES = {"cuda-tile": "numba_sparse_attn.cuda.tile", "cuda-warp": "numba_sparse_attn.cuda.warp"}

#: From the sizes of a call to what an engine is told; refuses sizes that were not planned for.
RequestMaker = Callable[[arrays.Dimensions], Request]

#: Gradients of the numbers of an engine's changes, and of the logits of a sink.
Learnt = tuple[list[Any], Any]


class ScoreMaker(Protocol):
    """What becomes of scores: see ``numba_sparse_attn/scores/_calls.py``."""

    def of(self, request: Request, lead: tuple[int, ...]) -> Scored: ...
    def learnt(self, request: Request, scored: Scored, found: Any, of_sink: Any) -> tuple[Any, ...]: ...


_FORWARD = ("q", "k", "v")
#: And out and lse, as an engine takes them.
_FORWARD_VIEWS = 5
_BACKWARD = ("dout", "q", "k", "v", "out", "lse")

#: The GPU that computes for arrays on the host.
_GPU_OF_HOST_ARRAYS = 0


def why_unavailable(name: str, device: int) -> str | None:
    """Why a CUDA engine cannot run on a GPU of this machine, or None if it can."""
    try:
        from cuda.core import Device
        from numba import cuda  # noqa: F401
    except ImportError as error:
        return f"the package {error.name} is not installed: pip install 'numba-sparse-attn[cuda13]'"
    try:
        count = len(Device.get_all_devices())
    except Exception as error:  # whatever a machine without a driver makes of the question
        return f"no CUDA driver answers ({error})"
    if not count:
        return "there is no CUDA device"
    if name == "cuda-tile" and target_of(device).major < 8:
        return f"the tile engine starts at sm_80, and this GPU is {target_of(device).architecture}"
    return None


def engine_module(name: str) -> Any:
    """The module of a CUDA engine."""
    return importlib.import_module(_MODULES[name])


def forward(
    engine: Any,
    make_request: RequestMaker,
    q: Any,
    k: Any,
    v: Any,
    *,
    return_lse: bool,
    out: Any,
    scores: ScoreMaker | None = None,
) -> Any:
    """A forward call on a GPU; see :meth:`numba_sparse_attn.Plan.__call__`."""
    inputs = device_views(_FORWARD, (q, k, v))
    if inputs is None:
        hosts = _host_arrays(_FORWARD, (q, k, v))
        request = make_request(_dimensions(*hosts))
        shape = (*hosts[0].shape[:-1], request.value_dim)
        targets = [arrays.output_array(out, shape, request.dtype, tuple(hosts))]
        if return_lse:
            targets.append(np.empty(shape[:-1], request.accumulator))
        with streams.on_device(_GPU_OF_HOST_ARRAYS):
            scored = scores.of(request, hosts[0].shape[:-3]) if scores else None
            copies = _copies(hosts)
            views = _queue_forward(engine, request, copies, return_lse=return_lse, out=None, scored=scored)
            results: list[Any] = _fetched(views, targets)
    else:
        request = make_request(_dimensions(*inputs))
        with streams.on_device(inputs[0].device):
            scored = scores.of(request, inputs[0].shape[:-3]) if scores else None
            views = _queue_forward(engine, request, inputs, return_lse=return_lse, out=out, scored=scored)
            results = [memory.deliver(view) for view in views]
    return tuple(results) if return_lse else results[0]


def backward(
    engine: Any,
    make_request: RequestMaker,
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    scores: ScoreMaker | None = None,
) -> tuple[Any, ...]:
    """A backward call on a GPU; see :meth:`numba_sparse_attn.Plan.backward`."""
    values = (dout, q, k, v, out, lse)
    inputs = device_views(_BACKWARD, values)
    if inputs is None:
        hosts = _host_arrays(_BACKWARD, values)
        request = _backward_request(make_request, *hosts)
        targets = [np.empty(array.shape, request.dtype) for array in hosts[1:4]]
        if _is_learned(request):
            targets.append(np.empty(request.heads, request.accumulator))
        with streams.on_device(_GPU_OF_HOST_ARRAYS):
            scored = scores.of(request, hosts[1].shape[:-3]) if scores else None
            views, learnt = _queue_backward(engine, request, _copies(hosts), scored)
            gradients: list[Any] = _fetched(views, targets)
    else:
        request = _backward_request(make_request, *inputs)
        with streams.on_device(inputs[0].device):
            scored = scores.of(request, inputs[1].shape[:-3]) if scores else None
            views, learnt = _queue_backward(engine, request, inputs, scored)
            gradients = [memory.deliver(view) for view in views]
    return *gradients, *(scores.learnt(request, scored, *learnt) if scores and scored else ())


# What depends on shapes and types ------------------------------------------------------------------------


class _Kind(NamedTuple):
    """What the checks see of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)


def _dimensions(q: arrays.ArrayLike, k: arrays.ArrayLike, v: arrays.ArrayLike) -> arrays.Dimensions:
    """Sizes of a call, after every check that needs no pattern."""
    return _checked(q.shape, q.dtype, k.shape, k.dtype, v.shape, v.dtype)


@functools.lru_cache(maxsize=1024)  # the checks take 8 us; what they refuse is not remembered
def _checked(
    q_shape: tuple[int, ...],
    q_dtype: np.dtype[Any],
    k_shape: tuple[int, ...],
    k_dtype: np.dtype[Any],
    v_shape: tuple[int, ...],
    v_dtype: np.dtype[Any],
) -> arrays.Dimensions:
    return arrays.check_arrays(_Kind(q_shape, q_dtype), _Kind(k_shape, k_dtype), _Kind(v_shape, v_dtype))


def _backward_request(
    make_request: RequestMaker,
    dout: arrays.ArrayLike,
    q: arrays.ArrayLike,
    k: arrays.ArrayLike,
    v: arrays.ArrayLike,
    out: arrays.ArrayLike,
    lse: arrays.ArrayLike,
) -> Request:
    """The request of a backward call, after checking the arrays that a forward call does not have."""
    request = make_request(_dimensions(q, k, v))
    rows = q.shape[:-1]
    shape = (*rows, request.value_dim)
    arrays.check_gradient(dout, shape, request.dtype, "dout")
    arrays.check_gradient(out, shape, request.dtype, "out")
    arrays.check_gradient(lse, rows, request.accumulator, "lse")
    return request


# What is new each time -----------------------------------------------------------------------------------


def _queue_forward(
    engine: Any,
    request: Request,
    inputs: tuple[DeviceView, ...],
    *,
    return_lse: bool,
    out: Any,
    scored: Scored | None,
) -> list[DeviceView]:
    """Queue a forward call on the current device: views of `out` and, if asked for, `lse`."""
    q = inputs[0]
    rows = q.shape[:-1]
    shape = (*rows, request.value_dim)
    if out is None:
        in_order = inputs
        stream = memory.join(in_order)
        result = memory.allocate(q.library, shape, request.dtype, q.device, stream)
    else:
        result = memory.accept(out, shape, request.dtype, q.device, inputs)
        in_order = (result, *inputs)
        stream = memory.join(in_order)
    lse = None
    sink = scored.sink if scored else None
    adds_one = isinstance(request.normaliser, SoftmaxPlusOne)
    if return_lse or sink is not None or adds_one:
        lse = memory.allocate(result.library, rows, request.accumulator, q.device, stream)
    if 0 not in shape:
        changes = () if scored is None else _on_device(scored, request, q.device, stream, gradients=False)
        _run(engine.forward, request, q.device, (*inputs, result, lse), changes=changes)
    if sink is not None and lse is not None and lse.size:
        from .sinks import add_sink

        whole, sums = _at_least_heads(result, lse)
        add_sink(whole, sums, sink, stream)
    if adds_one and lse is not None:
        plus_one.add_one(request, result, lse)
    memory.release(in_order, stream)
    return [result, lse] if return_lse and lse is not None else [result]


def _is_learned(request: Request) -> bool:
    """Whether there is a gradient of alpha, one number a query head."""
    return request.normaliser is not None and request.normaliser.learnable


def _queue_backward(
    engine: Any, request: Request, inputs: tuple[DeviceView, ...], scored: Scored | None
) -> tuple[list[DeviceView], Learnt]:
    """Queue a backward call on the current device: views of dq, dk and dv, and of dalpha if it is wanted; and
    what `scored` learns.
    """
    qkv = inputs[1:4]
    q = qkv[0]
    stream = memory.join((q, *inputs))  # q's, as in the forward call
    gradients = [memory.allocate(q.library, view.shape, request.dtype, q.device, stream) for view in qkv]
    learnt: Learnt = [], None
    dalpha = None
    if _is_learned(request):
        dalpha = memory.allocate(q.library, (request.heads,), request.accumulator, q.device, stream)
    if request.batch or dalpha is not None:
        changes = () if scored is None else _on_device(scored, request, q.device, stream, gradients=True)
        _run(engine.backward, request, q.device, (*inputs, *gradients), changes=changes, dalpha=dalpha)
        if scored is not None:
            learnt = _learnt(scored, changes, request, inputs, stream)
    if dalpha is not None:
        gradients.append(dalpha)
    memory.release(inputs, stream)
    return gradients, learnt


def _learnt(
    scored: Scored, changes: tuple[Any, ...], request: Request, inputs: tuple[DeviceView, ...], stream: int
) -> Learnt:
    """Gradients of numbers, back on the host: waits for the kernels."""
    of_steps: list[Any] = []
    of_sink = None
    if changes and any(room is not None for room in changes[0].pairs):
        from .changes import pair_gradients

        of_steps = pair_gradients(scored.changes[0], changes[0], request, stream)
    elif changes:
        of_steps = [None] * len(changes[0].pairs)
    if scored.sink is not None and scored.sink_learns:
        from .sinks import sink_gradient

        dout, _, _, _, out, lse = inputs
        if lse.size:
            require_contiguous(lse)
            dout, out, lse = _at_least_heads(dout, out, lse)
            of_sink = sink_gradient(dout, out, lse, scored.sink, stream)
        else:
            of_sink = np.zeros(request.heads)
    return of_steps, of_sink


def _at_least_heads(*views: DeviceView) -> tuple[DeviceView, ...]:
    """The views with a heads axis, the last of them being lse."""
    return views if len(views[-1].shape) > 1 else tuple(view.with_leading_axis() for view in views)


def _on_device(
    scored: Scored, request: Request, device: int, stream: int, *, gradients: bool
) -> tuple[Any, ...]:
    """What the engine is handed behind the arrays: one item or none."""
    if not scored.changes:
        return ()
    from .changes import device_changes

    return (device_changes(scored.changes[0], request, device, stream, gradients=gradients),)


def _run(
    function: Callable[..., None],
    request: Request,
    device: int,
    views: tuple[DeviceView | None, ...],
    *,
    changes: tuple[Any, ...],
    dalpha: DeviceView | None = None,
) -> None:
    """Call an engine. What it prepares in its first call of a kind may happen while a graph is captured."""
    more: dict[str, Any] = {} if dalpha is None else {"dalpha": dalpha}
    if changes:
        more["changes"] = changes[0]
    met = function, device
    if request.orders or request.fold > 1:
        from .orders import in_order  # with kernels, which few calls need

        function = in_order(function, request, forward=len(views) == _FORWARD_VIEWS)
    if met in request.memo:
        function(request, *_with_heads_axis(views), **more)
    else:
        with streams.beside_capture():
            function(request, *_with_heads_axis(views), **more)
        request.memo[met] = True


def _with_heads_axis(views: tuple[DeviceView | None, ...]) -> tuple[DeviceView | None, ...]:
    """The views as engines want them: with a heads axis, also where the caller's arrays are flat (n, d)."""
    first = views[0]
    if first is None or len(first.shape) > 2:
        return views
    return tuple([view and view.with_leading_axis() for view in views])


# Arrays on the host --------------------------------------------------------------------------------------


def _host_arrays(names: tuple[str, ...], values: tuple[Any, ...]) -> list[npt.NDArray[Any]]:
    return [arrays.as_array(value, name) for name, value in zip(names, values, strict=True)]


def _copies(hosts: list[npt.NDArray[Any]]) -> tuple[DeviceView, ...]:
    """The arrays in GPU memory, in the order of a stream of ours."""
    stream = streams.own_stream(_GPU_OF_HOST_ARRAYS)
    return tuple([staging.to_device(array, _GPU_OF_HOST_ARRAYS, stream) for array in hosts])


def _fetched(views: list[DeviceView], targets: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """The arrays that results were copied to."""
    for view, target in zip(views, targets, strict=True):
        staging.to_host(view, target, view.stream)
    return targets
