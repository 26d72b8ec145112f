"""Moving rows into an order and back, with the kernel in Numba's simulator; see ``test_simulator.py``.

The host side runs as it is; only what needs a device is replaced. While a kernel runs it may read the one
array and write the other and nothing else, and new memory is NaN.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import cuda

from numba_sparse_attn import as_pattern, orders, patterns
from numba_sparse_attn.cuda import orders as cuda_orders
from numba_sparse_attn.cuda.device.simulated import guarded
from numba_sparse_attn.cuda.orders import moving
from numba_sparse_attn.cuda.view import DeviceView
from numba_sparse_attn.formats.work import Request
from numba_sparse_attn.testing import (
    DTYPES,
    assert_margins_untouched,
    budget_for,
    dirty_memory,
    nan_filled,
    random_problem,
    surrounded,
)
from numba_sparse_attn.testing.strategies import views

from .tile_launching import run_in_classes


def seen(view):
    """The memory that a view stands for."""
    low, high = view.extent()
    raw = (ctypes.c_uint8 * (high - low)).from_address(low)
    return np.ndarray(view.shape, view.dtype, raw, view.address - low, view.strides)


class Device:
    """NumPy arrays that stand for device memory."""

    def __init__(self):
        self.held, self.launches = [], 0

    def view(self, array):
        self.held.append(array)
        address = array.__array_interface__["data"][0]
        return DeviceView(address, array.shape, array.strides, array.dtype, 0, 0, "other", array)

    def installed(self):
        return mock.patch.multiple(
            moving,
            load_kernel=lambda make, shape, signature, threads, device: (make, shape, signature),
            launch=self._launch,
            staging=SimpleNamespace(to_device=lambda array, device, stream: self.view(array)),
            streams=mock.MagicMock(),
            _UPLOADED=weakref.WeakKeyDictionary(),
        )

    def scratch(self, nbytes, device, stream, library):
        room = np.full(nbytes + 512, 0xFF, np.uint8)
        begin = -room.__array_interface__["data"][0] % 256
        return self.view(room[begin : begin + nbytes])

    def _launch(self, kernel, grid, threads, stream, arguments):
        make, shape, signature = kernel
        typed = [kind(argument) for kind, argument in zip(signature.args, arguments, strict=True)]

        def holding(address):
            for array in self.held:
                low, high = np.lib.array_utils.byte_bounds(array)
                if low <= address < high:
                    return array
            raise AssertionError("an address of nobody's memory")

        source, target = map(holding, arguments[:2])
        lists = [array for array in self.held if array.dtype in (np.int32, np.int64)]
        assert source is not target
        with guarded([source, *lists], [target]), dirty_memory():
            cuda.jit(make(shape))[grid, threads](*typed)
        self.launches += 1


def check(problem, chosen, which):
    """Every array arrives in order and every result goes back, bit by bit."""
    q, k, v, dout = problem.arrays
    batch = int(np.prod(q.shape[:-3], dtype=int))
    n_q, n_k = q.shape[-2], k.shape[-2]
    structure = as_pattern(np.ones((n_q, n_k), bool)).rows()
    request = Request(
        structures=(structure,) * len(chosen),
        which=np.broadcast_to(which, (batch, len(which))).astype(np.int32),
        heads=q.shape[-3],
        kv_heads=k.shape[-3],
        n_q=n_q,
        n_k=n_k,
        head_dim=q.shape[-1],
        value_dim=v.shape[-1],
        dtype=q.dtype,
        scale=1.0,
        orders=tuple(chosen),
    )
    group = q.shape[-3] // k.shape[-3]
    rng = np.random.default_rng(0)

    def moved(array, name):
        """Rows in order, head by head; key heads have the order of the query heads that read them."""
        of_keys = name in ("k", "v", "dk", "dv")
        result = np.empty(array.shape, array.dtype)
        shaped, target = (one[..., None] if name == "lse" else one for one in (array, result))
        for head in range(shaped.shape[-3]):
            order = chosen[which[head * group if of_keys else head]]
            target[..., head, :, :] = shaped[..., head, order.keys if of_keys else order.queries, :]
        return result

    real = np.float64 if q.dtype == np.float64 else np.float32
    lse = rng.standard_normal(q.shape[:-1]).astype(real)
    out = rng.standard_normal((*q.shape[:-1], v.shape[-1])).astype(q.dtype)
    gradients = [rng.standard_normal(array.shape).astype(q.dtype) for array in (q, k, v)]
    results = {"out": out, "lse": lse} | dict(zip(("dq", "dk", "dv"), gradients, strict=True))

    def run(names, written):
        def engine(inner, *given_views):
            assert inner.orders == () and inner.structures == request.structures
            for name, view in zip(names, given_views, strict=True):
                array = seen(view)
                if name in written:
                    array[...] = moved(results[name], name)
                else:
                    want = moved(given[name], name)
                    assert array.tobytes() == want.tobytes(), f"{name} is not in order"
                    assert view.address % 16 == 0

        return engine

    device = Device()
    for names, written, function in (
        (("q", "k", "v", "out", "lse"), ("out", "lse"), cuda_orders.forward_in_order),
        ("dout q k v out lse dq dk dv".split(), ("dq", "dk", "dv"), cuda_orders.backward_in_order),
    ):
        given = {"q": q, "k": k, "v": v, "dout": dout, "out": out, "lse": lse}
        targets = {name: surrounded(nan_filled(results[name].shape, results[name].dtype)) for name in written}
        arrays = [device.view((given | targets)[name]) for name in names]
        before = device.launches
        with (
            device.installed(),
            mock.patch.object(cuda_orders, "memory", SimpleNamespace(scratch=device.scratch)),
        ):
            function(run(names, written), request, *arrays)
        for name, target in targets.items():
            assert target.tobytes() == results[name].tobytes(), f"{name} did not come back"
            assert_margins_untouched(target)
        assert device.launches > before


def some_order(n_q, n_k, rng):
    return orders.Order(rng.permutation(n_q), rng.permutation(n_k))


@settings(suppress_health_check=list(HealthCheck), max_examples=8, deadline=None)
@given(st.data())
def test_rows_go_where_they_belong(data):
    n_q, n_k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    kv_heads, group = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    head_dim = data.draw(st.sampled_from([1, 5, 8, 16, 40]))
    problem = random_problem(
        np.ones((n_q, n_k), bool),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=data.draw(st.sampled_from([head_dim, 24, 3])),
        batch=data.draw(st.sampled_from([(), (2,)])),
        dtype=DTYPES[data.draw(st.sampled_from(list(DTYPES)))],
    )
    if data.draw(st.booleans()):
        problem = problem.with_arrays(*(data.draw(views(array)) for array in problem.arrays))
    which = np.repeat(np.arange(kv_heads) if data.draw(st.booleans()) else np.zeros(kv_heads, int), group)
    chosen = [some_order(n_q, n_k, rng) for _ in range(which.max() + 1)]
    check(problem, chosen, which)


@pytest.mark.parametrize(("dtype", "head_dim"), [("float16", 264), ("float32", 132), ("float64", 80)])
def test_rows_of_more_words_than_lanes(dtype, head_dim):
    problem = random_problem(np.ones((3, 5), bool), heads=2, head_dim=head_dim, dtype=DTYPES[dtype])
    check(problem, [some_order(3, 5, np.random.default_rng(0))], np.zeros(2, int))
    odd = replace(problem, v=problem.v[..., :-1], dout=problem.dout[..., :-1])
    check(odd, [some_order(3, 5, np.random.default_rng(1))], np.zeros(2, int))


def test_batch_axes_that_no_single_stride_reaches():
    problem = random_problem(np.ones((4, 6), bool), batch=(2, 3), heads=2, head_dim=8, dtype=np.float16)
    swapped = [np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1) for array in problem.arrays]
    rng = np.random.default_rng(0)
    check(problem.with_arrays(*swapped), [some_order(4, 6, rng), some_order(4, 6, rng)], np.array([1, 0]))


def test_more_rows_than_a_block_has():
    problem = random_problem(np.ones((300, 130), bool), heads=1, head_dim=64, dtype=np.float16)
    check(problem, [some_order(300, 130, np.random.default_rng(0))], np.zeros(1, int))


def test_the_tile_engine_reads_classes_where_they_lie():
    pattern = patterns.dilated_window(6, 1, 2)
    problem = random_problem(pattern.toarray(), head_dim=16, batch=(2,), dtype=DTYPES["float16"])
    budget_for(problem).check(**run_in_classes(problem, pattern.folded(2).tiles(), 2))


@pytest.mark.parametrize(("n_q", "n_k"), [(0, 3), (3, 0)])
def test_nothing_to_move(n_q, n_k):
    problem = random_problem(np.ones((n_q, n_k), bool), heads=1, head_dim=8)
    check(problem, [some_order(n_q, n_k, np.random.default_rng(0))], np.zeros(1, int))
