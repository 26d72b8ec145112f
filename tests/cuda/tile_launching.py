"""The tile engine on NumPy arrays, with the kernel that needs no Hopper in Numba's simulator.

The host side runs as it is; only what needs a device is replaced: copies to it, temporary memory, loading and
launching. While a kernel runs it may read and write what its part in the engine asks for and nothing else.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
from numba import cuda

from numba_sparse_attn.cuda import changes as device_side
from numba_sparse_attn.cuda import tile
from numba_sparse_attn.cuda.device.simulated import guarded
from numba_sparse_attn.cuda.orders import backward_in_classes, classes, forward_in_classes, moving
from numba_sparse_attn.cuda.orders.rows import make_move
from numba_sparse_attn.cuda.tile import launch_sm80, prepared, schedule, statistics
from numba_sparse_attn.cuda.tile.backward_sm80 import make_backward
from numba_sparse_attn.cuda.tile.copies import make_copy
from numba_sparse_attn.cuda.tile.forward_sm80 import make_forward
from numba_sparse_attn.cuda.tile.statistics import make_statistics
from numba_sparse_attn.cuda.view import DeviceView
from numba_sparse_attn.scores._calls import CallScores, kinds_of
from numba_sparse_attn.testing import (
    assert_margins_untouched,
    dirty_memory,
    nan_filled,
    poisoned,
    request_for,
    surrounded,
)

#: Which arguments of a kernel are addresses of what it writes.
WRITES = {
    make_forward: (1, 11),
    make_copy: (1,),
    make_statistics: (3,),
    make_backward: (12, 13),
    make_move: (1,),
}


def run(problem, structures, *, poison=np.nan, gradients=False, scores=(), stack=None):
    """ "out", "lse" and, if asked for, gradients; `poison` in rows that no pair needs, NaN in outputs and
    around them. `stack` may put heads behind one another, as ``packing.py`` does.
    """
    problem = poisoned(problem, poison)
    q, k, v, dout = problem.arrays
    out = surrounded(nan_filled((*q.shape[:-1], v.shape[-1]), problem.dtype))
    lse = surrounded(nan_filled(q.shape[:-1], np.dtype(np.float32)))
    device = Device()
    request = replace(request_for(problem, structures), changed=kinds_of(scores))
    assert tile.why_not(request) == []
    changes = device.changes(scores, request, q.shape[:-3])
    views = [device.view(array) for array in (q, k, v, out, lse)]
    forward_request = request
    if stack is not None:
        forward_request, views[0], views[3] = stack(request, views[0], views[3])
    with device.installed():
        tile.forward(forward_request, *views, changes)
    results = {"out": out, "lse": lse}
    if gradients:
        targets = [surrounded(nan_filled(array.shape, problem.dtype)) for array in (q, k, v)]
        with device.installed():
            launch_sm80.backward_without_wgmma(
                request, *(device.view(array) for array in (dout, q, k, v, out, lse, *targets)), changes
            )
        results |= zip(("dq", "dk", "dv"), targets, strict=True)
    for array in results.values():
        assert_margins_untouched(array)
    return results


def run_in_classes(problem, structure, fold):
    """All results of a problem whose tokens fall into classes, each with the pairs of `structure`."""
    q, k, v, dout = problem.arrays
    request = replace(request_for(problem, structure), fold=fold)
    shapes = {"out": (*q.shape[:-1], v.shape[-1]), "dq": q.shape, "dk": k.shape, "dv": v.shape}
    results = {name: surrounded(nan_filled(shape, problem.dtype)) for name, shape in shapes.items()}
    results["lse"] = surrounded(nan_filled(q.shape[:-1], np.dtype(np.float32)))
    out, lse = results["out"], results["lse"]
    device = Device()
    with device.installed():
        forward_in_classes(tile.forward, request, *map(device.view, (q, k, v, out, lse)))
    gradients = [results[name] for name in ("dq", "dk", "dv")]
    with device.installed():
        engine = partial(launch_sm80.backward_without_wgmma, changes=None)
        backward_in_classes(engine, request, *map(device.view, (dout, q, k, v, out, lse, *gradients)))
    for array in results.values():
        assert_margins_untouched(array)
    return results


class Device:
    """Arrays that stand for device memory, and what is done with them."""

    def __init__(self):
        self.arrays = []

    @contextlib.contextmanager
    def installed(self):
        kernels = {"load_kernel": self._load, "launch": self._launch}
        with (
            mock.patch.object(tile, "has_wgmma", lambda device: False),
            mock.patch.multiple(prepared, **kernels),
            mock.patch.multiple(statistics, **kernels),
            mock.patch.multiple(
                classes,
                load_kernel=self._load,
                memory=SimpleNamespace(scratch=self._scratch),
                upload=lambda array, device: self.view(array),
            ),
            mock.patch.multiple(moving, launch=self._launch, streams=mock.MagicMock()),
            mock.patch.multiple(
                launch_sm80,
                **kernels,
                memory=SimpleNamespace(scratch=self._scratch),
                streams=mock.MagicMock(),
            ),
            mock.patch.multiple(
                schedule,
                upload=lambda device, *arrays: tuple(self.view(array) for array in arrays),
                _LISTS=weakref.WeakKeyDictionary(),
                _KEY_LISTS=weakref.WeakKeyDictionary(),
            ),
        ):
            yield

    def view(self, array):
        self.arrays.append(array)
        address = array.__array_interface__["data"][0]
        return DeviceView(address, array.shape, array.strides, array.dtype, 0, 0, "other", array)

    def changes(self, scores, request, lead):
        """What the engine is handed of changes that learn nothing."""
        scored = CallScores(scores, "cuda-tile").of(request, lead)
        if not scored.changes:
            return None
        staging = SimpleNamespace(to_device=lambda array, device, stream: self.view(array))
        with mock.patch.object(device_side, "staging", staging):
            return device_side.device_changes(scored.changes[0], request, 0, 0, gradients=True)

    def _scratch(self, nbytes, device, stream, library):
        room = nan_filled((nbytes // 4 + 4,), np.dtype(np.float32))
        begin = -room.__array_interface__["data"][0] % 16 // 4
        return self.view(room[begin : begin + nbytes // 4])

    @staticmethod
    def _load(make, shape, signature, threads, device, *, shared_bytes=0, blocks=1):
        return make, shape, signature

    def _launch(self, kernel, grid, threads, stream, arguments, *, shared_bytes=0):
        make, shape, signature = kernel
        typed = [kind(argument) for kind, argument in zip(signature.args, arguments, strict=True)]
        targets = [arguments[number] for number in WRITES[make]]
        readable, writable = [], []
        for array in self.arrays:
            low, high = np.lib.array_utils.byte_bounds(array)
            (writable if any(low <= target < high for target in targets) else readable).append(array)
        with guarded(readable, writable), dirty_memory(), warnings.catch_warnings():
            # What comes of poison until it is masked is no news to a GPU.
            warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)
            cuda.jit(make(shape))[grid, threads](*typed)
