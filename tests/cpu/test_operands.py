"""What tile kernels are handed: rows in place or copied, aligned scratch, shares of work."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn.cpu import operands
from numba_sparse_attn.cpu.elements import head_addresses
from numba_sparse_attn.testing import DTYPES

from .tile_problems import draw, odd_layouts

F4, F8 = np.dtype(np.float32), np.dtype(np.float64)


def read_back(rows, shape, dtype):
    """The matrices that a Rows names, read through its addresses."""
    batch, heads, count, depth = shape
    result = np.empty(shape, dtype)
    begin = rows.owner.__array_interface__["data"][0]
    memory = np.lib.stride_tricks.as_strided(rows.owner, (rows.owner.size,), (dtype.itemsize,))
    for item, head, row in np.ndindex(batch, heads, count):
        place = rows.addresses[item, head] + row * rows.stride - begin
        assert place % dtype.itemsize == 0
        result[item, head, row] = memory[place // dtype.itemsize :][:depth]
    return result


def test_rows_of_compute_type_stay_where_they_are():
    array = draw((2, 3, 5, 16))
    rows = operands.rows_of(array, F4, 8)
    assert rows.owner is array
    assert rows.stride == 64
    np.testing.assert_array_equal(rows.addresses, head_addresses(array))
    assert operands.rows_of(array[..., :11], F4, 1).owner.base is array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", [1, 8])
def test_other_rows_are_converted(unit, dtype):
    kind = DTYPES[dtype]
    accumulator = F8 if kind == F8 else F4
    array = draw((2, 3, 130, 11), kind)
    layouts = {"C order": array, **odd_layouts(array)}
    for name in ("C order", "every second element", "heads inside"):
        rows = operands.rows_of(layouts[name], accumulator, unit)
        if rows.owner is layouts[name]:
            assert unit == 1
            assert kind == accumulator
            continue
        result = read_back(rows, array.shape, accumulator)
        np.testing.assert_array_equal(result, array.astype(accumulator))
        padding = rows.owner.reshape(-1, operands.padded(11, unit))[:, 11:]
        assert (padding == 0).all()


@pytest.mark.parametrize("make", [operands.aligned_empty, operands.aligned_zeros])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_scratch_begins_on_a_cache_line(size, make):
    array = make(size, F4)
    assert array.shape == (size,)
    assert array.dtype == F4
    assert array.__array_interface__["data"][0] % 64 == 0
    assert make is operands.aligned_empty or (array == 0).all()


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
@pytest.mark.parametrize("costs", [[1], [0, 0, 5], [3] * 40, list(range(30)), [1000, 1, 1, 1], [0, 0]])
def test_ranges_cover_every_unit_once(costs, count):
    found = operands.ranges(np.array(costs), count)
    assert len(found) <= count
    assert [unit for first, last in found for unit in range(first, last)] == list(range(len(costs)))
    assert all(first < last for first, last in found)


def test_ranges_are_of_about_the_same_cost():
    costs = np.random.default_rng(0).integers(1, 20, 1000)
    sums = [costs[first:last].sum() for first, last in operands.ranges(costs, 10)]
    assert len(sums) == 10
    assert max(sums) - min(sums) <= 2 * costs.max()


def test_little_work_is_one_share(monkeypatch):
    costs = np.ones(100, np.int64)
    monkeypatch.setenv("NSA_NUM_THREADS", "4")
    assert operands.shares(costs, 1000) == [(0, 100)]
    assert len(operands.shares(costs, 10**9)) > 4
    monkeypatch.setenv("NSA_NUM_THREADS", "1")
    assert operands.shares(costs, 10**9) == [(0, 100)]
    assert operands.shares(costs[:0], 10**9) == []


@pytest.mark.parametrize("flops", [0, 10**9])
def test_run_all_runs_every_item(flops, monkeypatch):
    monkeypatch.setenv("NSA_NUM_THREADS", "3")
    seen = []
    operands.run_all(lambda item, worker: seen.append((item, worker)), range(20), flops)
    assert sorted(item for item, _ in seen) == list(range(20))
    assert flops or {worker for _, worker in seen} == {0}
