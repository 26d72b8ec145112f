"""Backward pass of the row path: any lists, shared keys, any memory, equal bits, exact zeros."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numba_sparse_attn import cpu, reference
from numba_sparse_attn.cpu import row_backward, row_work
from numba_sparse_attn.testing import DTYPES, budget_for, nan_filled, random_problem, request_for

from .row_problems import bits, csr_of, ragged_mask, run_backward, run_forward, with_wide_indices
from .tile_problems import odd_layouts

LAYOUTS = list(odd_layouts(np.zeros((1, 1, 1))))

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def gradients(problem, structures):
    return run_backward(problem, structures, *run_forward(problem, structures))


def check(problem, structures):
    results = gradients(problem, structures)
    budget_for(problem).check(**dict(zip(("dq", "dk", "dv"), results, strict=True)))
    return results


@every_dtype
@pytest.mark.parametrize(
    ("head_dim", "value_dim"), [(1, 1), (3, 16), (16, 3), (40, 40), (64, 64), (100, 64), (64, 200)]
)
def test_head_dims(head_dim, value_dim, dtype):
    mask = ragged_mask(70, 90)
    problem = random_problem(mask, heads=2, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype])
    check(problem, csr_of(mask))


@every_dtype
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_query_heads_with_different_lists_share_keys(kv_heads, dtype):
    masks = np.stack([ragged_mask(65, 129, seed) for seed in range(6)])
    masks[3] = False
    masks[4] = True
    problem = random_problem(
        masks, heads=6, kv_heads=kv_heads, head_dim=20, value_dim=12, dtype=DTYPES[dtype], batch=(2,)
    )
    check(problem, [csr_of(mask) for mask in masks])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [511, 513, 1025, 3000])
@pytest.mark.parametrize("by_key", [False, True])
def test_long_lists_are_worked_off_in_pieces(length, by_key, dtype):
    """Long lists of keys, and long lists of queries, with short ones between them."""
    mask = np.zeros((9, length), bool)
    mask[[1, 2, 5, 8]] = True
    mask[3, :7] = mask[6, -1] = True
    mask = mask.T if by_key else mask
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=17, dtype=DTYPES[dtype])
    check(problem, csr_of(mask))


@every_dtype
@pytest.mark.parametrize("scale", [0.0, -0.5, 1e-30, 3.0])
def test_scales(scale, dtype):
    mask = ragged_mask(40, 60)
    problem = random_problem(mask, heads=2, head_dim=8, dtype=DTYPES[dtype], scale=scale)
    dq, dk, _ = check(problem, csr_of(mask))
    if scale == 0.0:
        assert not dq.any() and not dk.any()


@pytest.mark.parametrize("scale", [1e6, -1e30])
def test_large_scales_give_finite_gradients(scale):
    """lse has no digits left for what a probability needs; it still is one, between 0 and 1."""
    mask = ragged_mask(40, 60)
    problem = random_problem(mask, head_dim=8, scale=scale)
    _, _, dv = gradients(problem, csr_of(mask))
    assert np.isfinite(dv).all()
    assert np.abs(dv).max() <= np.abs(problem.dout).sum(axis=-2).max() + 1e-3


@every_dtype
@pytest.mark.parametrize(
    "layout", ["Fortran order", "every second element", "backwards", "heads inside", "not aligned"]
)
def test_layouts(layout, dtype):
    mask = ragged_mask(50, 80)
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=32, dtype=DTYPES[dtype], batch=(2,))
    structure = csr_of(mask)
    out, lse = run_forward(problem, structure)
    expected = run_backward(problem, structure, out, lse)
    views = problem.with_arrays(*(odd_layouts(array)[layout] for array in problem.arrays))
    out, lse = odd_layouts(out)[layout], odd_layouts(lse)[layout]
    results = [odd_layouts(np.full(array.shape, np.nan, array.dtype))[layout] for array in problem.arrays[:3]]
    request = request_for(problem, structure)
    cpu.backward(request, views.dout, views.q, views.k, views.v, out, lse, *results)
    assert bits(map(np.ascontiguousarray, results)) == bits(expected)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1), (64, 1), (65, 1), (1, 300)])
def test_sizes_at_the_edge(shape):
    mask = np.ones(shape, bool)
    check(random_problem(mask, heads=2, head_dim=5), csr_of(mask))


def test_rows_and_keys_without_pairs_get_exact_zeros():
    mask = ragged_mask(60, 70)
    mask[:, 10:20] = False
    problem = random_problem(mask, heads=2, head_dim=8)
    dq, dk, dv = gradients(problem, csr_of(mask))
    empty, unseen = ~mask.any(axis=1), ~mask.any(axis=0)
    assert empty.any() and unseen.sum() > 10
    assert not dq[:, empty].any() and not dk[:, unseen].any() and not dv[:, unseen].any()


def test_no_incoming_gradient_gives_exact_zeros():
    mask = ragged_mask(60, 70)
    problem = random_problem(mask, heads=2, head_dim=8)
    problem = replace(problem, dout=np.zeros_like(problem.dout))
    assert not any(array.any() for array in gradients(problem, csr_of(mask)))


def test_selected_heads_write_their_dq_and_all_of_dk_and_dv():
    mask = ragged_mask(30, 40)
    problem = random_problem(mask, heads=4, kv_heads=2, head_dim=8, batch=(2,))
    out, lse = run_forward(problem, csr_of(mask))
    selected = np.array([1, 2, 3])  # none of the second batch element
    dq, dk, dv = (nan_filled(array.shape, "f4") for array in problem.arrays[:3])
    request = request_for(problem, csr_of(mask))
    row_backward.backward_rows(
        request, selected, problem.dout, problem.q, problem.k, problem.v, out, lse, dq, dk, dv
    )
    flat = dq.reshape(8, -1)
    assert np.isfinite(flat[selected]).all() and np.isnan(np.delete(flat, selected, axis=0)).all()
    dout = problem.dout.copy()
    dout.reshape(8, -1)[[0, 4, 5, 6, 7]] = 0
    _, expected_dk, expected_dv = reference.backward(dout, *problem.arrays[:3], mask, problem.scale)
    np.testing.assert_allclose(dk, expected_dk, rtol=0, atol=1e-5)
    np.testing.assert_allclose(dv, expected_dv, rtol=0, atol=1e-5)
    assert not dk[1].any() and not dv[1].any()


def test_sums_may_be_kept_in_accumulator_type():
    mask = ragged_mask(30, 40)
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=8, dtype=np.float16)
    out, lse = run_forward(problem, csr_of(mask))
    expected = run_backward(problem, csr_of(mask), out, lse)
    dq = nan_filled(problem.q.shape, np.float16)
    dk, dv = (nan_filled(array.shape, np.float32) for array in (problem.k, problem.v))
    request = request_for(problem, csr_of(mask))
    row_backward.backward_rows(
        request, np.arange(2), problem.dout, problem.q, problem.k, problem.v, out, lse, dq, dk, dv
    )
    assert bits((dq, dk.astype(np.float16), dv.astype(np.float16))) == bits(expected)


def test_lse_of_more_keys_gives_the_share_of_these():
    """Keys in two halves with the lse and out of all: their gradients are those of the whole."""
    mask = ragged_mask(40, 60)
    problem = random_problem(mask, head_dim=8, dtype=np.float64)
    whole = csr_of(mask)
    out, lse = run_forward(problem, whole)
    expected = run_backward(problem, whole, out, lse)
    left = np.arange(60) < 25
    parts = [run_backward(problem, csr_of(mask & half), out, lse) for half in (left, ~left)]
    for one, other, both in zip(*parts, expected, strict=True):
        np.testing.assert_allclose(one + other, both, rtol=0, atol=1e-13)


@every_dtype
def test_threads_and_repetition_do_not_change_bits(dtype, monkeypatch):
    masks = np.stack([ragged_mask(300, 700, seed) for seed in range(4)])
    masks[1, :, 30] = masks[2, 200] = True
    problem = random_problem(masks, heads=4, kv_heads=2, head_dim=32, dtype=DTYPES[dtype])
    structures = [csr_of(mask) for mask in masks]
    monkeypatch.setattr("numba_sparse_attn.cpu.operands._SERIAL_FLOPS", 0)
    results = []
    for threads in ("1", "2", "2", "3", "7"):
        monkeypatch.setenv("NSA_NUM_THREADS", threads)
        results.append(bits(gradients(problem, structures)))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_copies_waves_and_wide_indices_do_not_change_bits(dtype, monkeypatch):
    masks = np.stack([ragged_mask(60, 500, seed) for seed in range(4)])
    problem = random_problem(masks, heads=4, kv_heads=2, head_dim=64, dtype=DTYPES[dtype], batch=(3,))
    structures = [csr_of(mask) for mask in masks]
    expected = bits(gradients(problem, structures))
    assert bits(gradients(problem, [with_wide_indices(csr) for csr in structures])) == expected
    for reads in (0, 10**9):
        monkeypatch.setattr(row_work, "_READS_WORTH_ALIGNING", reads)
        assert bits(gradients(problem, structures)) == expected
    for size in (1, 500_000, 1 << 40):
        monkeypatch.setattr(row_work, "_WAVE_BYTES", size)
        assert bits(gradients(problem, structures)) == expected


def test_values_that_are_not_finite_go_where_a_pair_carries_them():
    mask = ragged_mask(64, 64, seed=3)
    problem = random_problem(mask, head_dim=8, scale=0.3)
    problem.v[0, 11] = np.inf
    problem.q[0, 33, 1] = np.nan
    problem.dout[0, 20, 3] = np.nan
    results = gradients(problem, csr_of(mask))
    expected = reference.backward(problem.dout, *problem.arrays[:3], mask, 0.3)
    for actual, exact in zip(results, expected, strict=True):
        assert np.isnan(exact).any() and np.isfinite(exact).any()
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(exact))
        finite = np.isfinite(exact)
        np.testing.assert_allclose(actual[finite], exact[finite], rtol=1e-3, atol=1e-4)
