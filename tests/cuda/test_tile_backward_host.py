"""What the tile engine does on the host for gradients, with a driver that only notes what it is asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

from numba_sparse_attn import as_pattern, patterns
from numba_sparse_attn.cuda import tile
from numba_sparse_attn.cuda.device.row_parts import gradient_row_bytes
from numba_sparse_attn.cuda.tile import schedule
from numba_sparse_attn.cuda.tile.backward_sm90 import BACKWARD_SIGNATURE
from numba_sparse_attn.cuda.tile.copies import COPY_SIGNATURE
from numba_sparse_attn.cuda.tile.merge_gradients import MERGE_GRADIENTS_SIGNATURE
from numba_sparse_attn.cuda.tile.shape import MOST_HEAD_DIM
from numba_sparse_attn.cuda.tile.shape_gradients import gradient_shapes
from numba_sparse_attn.cuda.tile.statistics import STATISTICS_SIGNATURE
from numba_sparse_attn.testing import random_problem, request_for

from .noting_device import HALF, Device, view_of

NAMES = ("dout", "q", "k", "v", "out", "lse", "dq", "dk", "dv")


def call(problem, structures):
    request = request_for(problem, structures)
    q, k, v, dout = problem.arrays
    lse = np.empty(q.shape[:-1], np.float32)
    values = (dout, q, k, v, dout, lse, q, k, v)
    views = {name: view_of(a, (1 + i) << 24) for i, (name, a) in enumerate(zip(NAMES, values, strict=True))}
    tile.backward(request, *views.values())
    return request, views


def listed(device, address, count, width):
    """The entries of a list."""
    begin = max(start for start in device.memory if start <= address)
    return device.memory[begin].reshape(-1, width)[(address - begin) // (4 * width) :][:count]


def test_work_names_every_tile_of_every_group():
    """Groups with one pattern and with several; masks of several structures lie behind one another."""
    structures = (patterns.causal(700).tiles(), patterns.sliding_window(700, 90).tiles())
    which = np.array([[0, 1, 1, 1], [1, 0, 0, 0]], np.int32)
    with Device().installed() as device:
        result = schedule.key_schedule_of(structures, which, 2, 0, 4)
        assert result.blocks == 4
        work = device.memory[result.work]
        seen = set()
        for place, tiles, list_at, masks_at, *first_entry, _, _ in work.tolist():
            entry, column = place >> 32, place & 0xFFFFFFFF
            members = [structures[number] for number in which.reshape(-1, 2)[entry]]
            found = listed(device, list_at, tiles, 4)
            expected = []
            for number, structure in enumerate(members):
                first, last = structure.transposed_indptr[column : column + 2]
                rows, ids = structure.transposed_rows[first:last], structure.transposed_mask_ids[first:last]
                expected += [(number, row, structure, mask) for row, mask in zip(rows, ids, strict=True)]
            assert len(found) == len(expected)
            assert found[0].tobytes() == np.array(first_entry).tobytes()
            for (number, row, mask, zero), (member, tile_row, structure, own) in zip(
                found.tolist(), expected, strict=True
            ):
                assert (number, row, zero) == (member, tile_row, 0) and (mask == 0) == (own == 0)
                masks = device.memory[masks_at]
                assert np.array_equal(masks[mask], structure.transposed_lanes[own])
            seen.add((entry, column))
        assert len(seen) == len(work) == 4 * 6
        uploads = set(device.memory)
        schedule.key_schedule_of(structures, which[1:], 2, 0, 4)
        assert len(set(device.memory) - uploads) == 2  # lists are known, work and begins are new


def test_a_further_call_prepares_and_uploads_nothing():
    problem = random_problem(np.ones((200, 330), bool), heads=4, kv_heads=2, head_dim=64, dtype=HALF)
    with Device().installed() as device:
        request, arrays = call(problem, as_pattern(problem.mask).tiles())
        uploads = set(device.memory)
        tile.backward(request, *arrays.values())
        assert set(device.memory) == uploads
        first, second = device.launches[:3], device.launches[3:]
        kernels = ["make_statistics", "make_backward", "make_backward"]
        assert [one[0] for one in first] == [one[0] for one in second] == kernels
        signatures = (STATISTICS_SIGNATURE, BACKWARD_SIGNATURE, BACKWARD_SIGNATURE)
        for (_, _, arguments), signature in zip(first, signatures, strict=True):
            assert len(arguments) == len(signature.args)
        pairs = first[0][2][3]
        for (_, _, arguments), names, sizes in zip(
            first[1:],
            (("q", "dout", "k", "v", "dq", "dq"), ("k", "v", "q", "dout", "dk", "dv")),
            ((4, 2, 200, 256, 64, 64), (2, 2, 330, 256, 64, 64)),
            strict=True,
        ):
            assert arguments[3:5] == (pairs, 0) and arguments[5:11] == sizes
            assert list(arguments[11:17]) == [arrays[name].address for name in names]
            strides = [stride for name in names for stride in (0, *arrays[name].strides[-3:-1])]
            assert list(arguments[17:35]) == strides
            described = device.memory[arguments[0]].reshape(4, -1)
            assert described[:, 0].tolist() == [arrays[name].address for name in names[:4]]
            assert described[:, 1].tolist() == [64] * 4  # half an item, and a step


def test_arrays_that_the_copy_engine_cannot_take_are_copied():
    problem = random_problem(np.ones((20, 30), bool), heads=2, head_dim=20, dtype=HALF)
    with Device().installed() as device:
        _, arrays = call(problem, as_pattern(problem.mask).tiles())
        kernels = [kernel for kernel, _, _ in device.launches]
        expected = ["make_copy"] * 4 + ["make_statistics"] + ["make_backward"] * 2 + ["make_copy"] * 3
        assert kernels == expected
        copies = [arguments for kernel, _, arguments in device.launches if kernel == "make_copy"]
        assert all(len(arguments) == len(COPY_SIGNATURE.args) for arguments in copies)
        assert [copy[0] for copy in copies[:4]] == [arrays[name].address for name in ("dout", "q", "k", "v")]
        assert [copy[1] for copy in copies[4:]] == [arrays[name].address for name in ("dq", "dk", "dv")]
        # Statistics read the caller's arrays, sweeps the copies.
        assert device.launches[4][2][:2] == (arrays["out"].address, arrays["dout"].address)
        places = {name: copy[1] for name, copy in zip(("dout", "q", "k", "v"), copies, strict=False)}
        assert device.launches[5][2][11:15] == tuple(places[name] for name in ("q", "dout", "k", "v"))


def test_axes_that_do_not_merge_are_walked_through():
    problem = random_problem(np.ones((9, 9), bool), heads=1, head_dim=8, batch=(2, 3), dtype=HALF)
    turned = [np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1) for array in problem.arrays]
    with Device().installed() as device:
        call(problem.with_arrays(*turned), patterns.full(9).tiles())
        assert len(device.launches) == 2 * 3  # the second axis is one call


@pytest.mark.parametrize(("n_q", "n_k", "sweeps"), [(9, 0, 1), (0, 9, 1), (0, 0, 0)])
def test_nothing_is_asked_of_arrays_without_rows(n_q, n_k, sweeps):
    problem = random_problem(np.zeros((n_q, n_k), bool), heads=2, head_dim=24, value_dim=20, dtype=HALF)
    with Device().installed() as device:
        call(problem, as_pattern(problem.mask).tiles())
        kernels = [kernel for kernel, _, _ in device.launches]
        assert kernels.count("make_backward") == sweeps and kernels.count("make_statistics") == (n_q > 0)


@pytest.mark.parametrize(("shape", "cut_sweep"), [((100, 4096), 0), ((4096, 100), 1)])
def test_cut_rows_take_a_further_kernel_and_memory_for_their_parts(shape, cut_sweep):
    problem = random_problem(np.ones(shape, bool), heads=2, head_dim=64, dtype=HALF)
    kernels = ["make_statistics", "make_backward", "make_backward"]
    kernels.insert(2 + cut_sweep, "make_gradient_merge")
    with Device().installed() as device:
        call(problem, as_pattern(problem.mask).tiles())
        assert [kernel for kernel, _, _ in device.launches] == kernels
        (_, blocks, sweep), (_, merging, more) = device.launches[1 + cut_sweep : 3 + cut_sweep]
        assert len(sweep) == len(BACKWARD_SIGNATURE.args)
        assert len(more) == len(MERGE_GRADIENTS_SIGNATURE.args) and more[1:] == sweep[3:]
        long_rows = device.memory[more[0]]
        assert blocks == long_rows[:, 2].sum() == 16 and merging == 2 * 128 // 4
        sums = gradient_row_bytes(64, 64, first=True, second=cut_sweep == 1)
        assert device.room(0) - sweep[4] >= blocks * 128 * sums


def test_wide_gradients_of_keys_take_two_launches():
    problem = random_problem(np.ones((9, 9), bool), heads=1, head_dim=256, dtype=HALF)
    with Device().installed() as device:
        call(problem, patterns.full(9).tiles())
        assert [kernel for kernel, _, _ in device.launches] == ["make_statistics"] + ["make_backward"] * 3


@given(st.integers(1, MOST_HEAD_DIM), st.integers(1, MOST_HEAD_DIM), st.booleans(), st.booleans())
def test_every_shape_fits_into_shared_memory(head_dim, value_dim, of_keys, masked):
    shapes = gradient_shapes("float16", head_dim, value_dim, of_keys=of_keys, masked=masked, negate=False)
    assert [shape.first for shape in shapes].count(True) == 1
    assert [shape.second for shape in shapes].count(True) == of_keys
    for shape in shapes:
        assert shape.depth >= head_dim and shape.width >= value_dim
        assert shape.shared_bytes <= 227 << 10
        assert shape.item_bytes % 1024 == shape.step_bytes % 1024 == 0
        assert shape.pairs_at % 16 == shape.masks_at % 16 == shape.barriers_at % 8 == 0
        assert shape.stages in (2, 4) and shape.columns in (32, 64, 128)
