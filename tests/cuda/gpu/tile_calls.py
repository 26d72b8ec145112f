"""The tile engine on NumPy problems: arrays go to the GPU between NaN, results come back."""

from __future__ import annotations

import numpy as np

from numba_sparse_attn.cuda import tile
from numba_sparse_attn.cuda.interchange import device_views
from numba_sparse_attn.testing import poisoned, request_for

#: Elements around an array; keeps the alignment that the array would have by itself.
_MARGIN = 256


def on_gpu(array):
    """A tensor with the array's strides, in the middle of NaN."""
    import torch

    kind = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[array.dtype.name]
    low, high = np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)
    room = (high - low) // array.itemsize
    first = (array.__array_interface__["data"][0] - low) // array.itemsize if array.size else 0
    buffer = torch.full((room + 2 * _MARGIN,), float("nan"), dtype=kind, device="cuda")
    if any(stride < 0 for stride in array.strides):
        raise ValueError("PyTorch has no negative strides")
    strides = [stride // array.itemsize for stride in array.strides]
    target = torch.as_strided(buffer, array.shape, strides, _MARGIN + first)
    # Elements that share their memory are written once.
    once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)
    bits = np.ascontiguousarray(array[once]).view(f"i{array.itemsize}")
    target[once].copy_(torch.from_numpy(bits).view(kind))
    return target


def to_host(tensor, dtype):
    import torch

    bits = tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
    return bits.cpu().numpy().view(dtype)


def run(problem, structures, *, poison=np.nan, repeats=2):
    """ "out" and "lse" of a problem, computed several times with the same bits, from poisoned inputs."""
    import torch

    dirty = poisoned(problem, poison)
    request = request_for(problem, structures)
    assert tile.why_not(request) == []
    q, k, v = (on_gpu(array) for array in dirty.arrays[:3])
    results = []
    for _ in range(repeats):
        out = on_gpu(np.full((*problem.q.shape[:-1], problem.v.shape[-1]), np.nan, problem.dtype))
        lse = on_gpu(np.full(problem.q.shape[:-1], np.nan, np.float32))
        tile.forward(request, *device_views(("q", "k", "v", "out", "lse"), (q, k, v, out, lse)))
        torch.cuda.synchronize()
        for tensor in (out, lse):
            assert_margins_untouched(tensor)
        results.append((to_host(out, problem.dtype), to_host(lse, np.float32)))
    for out, lse in results[1:]:
        assert out.tobytes() == results[0][0].tobytes() and lse.tobytes() == results[0][1].tobytes()
    return {"out": results[0][0], "lse": results[0][1]}


def run_gradients(problem, structures, *, poison=np.nan, repeats=2, layout=np.asarray):
    """ "dq", "dk" and "dv" of a problem, as :func:`run`; `layout` gives other strides to what the engine
    writes, and to out and lse.
    """
    import torch

    dirty = poisoned(problem, poison)
    request = request_for(problem, structures)
    q, k, v, dout = (on_gpu(array) for array in dirty.arrays)
    out = on_gpu(layout(np.full((*problem.q.shape[:-1], problem.v.shape[-1]), np.nan, problem.dtype)))
    lse = on_gpu(np.full(problem.q.shape[:-1], np.nan, np.float32))
    tile.forward(request, *device_views(("q", "k", "v", "out", "lse"), (q, k, v, out, lse)))
    turned = on_gpu(layout(to_host(lse, np.float32)))
    results = []
    for _ in range(repeats):
        gradients = [on_gpu(layout(np.full(a.shape, np.nan, problem.dtype))) for a in problem.arrays[:3]]
        views = device_views(
            tuple("dout q k v out lse dq dk dv".split()), (dout, q, k, v, out, turned, *gradients)
        )
        tile.backward(request, *views)
        torch.cuda.synchronize()
        for tensor in gradients:
            assert_margins_untouched(tensor)
        results.append([to_host(tensor, problem.dtype) for tensor in gradients])
    for again in results[1:]:
        assert all(one.tobytes() == other.tobytes() for one, other in zip(results[0], again, strict=True))
    return dict(zip(("dq", "dk", "dv"), results[0], strict=True))


def assert_margins_untouched(tensor):
    """Fail if anything was written around a tensor from :func:`on_gpu` that was filled with NaN."""
    import torch

    room = tensor.untyped_storage().nbytes() // tensor.element_size()
    around = torch.as_strided(tensor, (room,), (1,), 0)
    assert bool(torch.isnan(around[:_MARGIN]).all()) and bool(torch.isnan(around[-_MARGIN:]).all())
