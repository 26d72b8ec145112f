"""Forward pass of the row path: any lists, any memory, equal bits, values that are not finite."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numba_sparse_attn import cpu, reference
from numba_sparse_attn.cpu import row_forward, row_work
from numba_sparse_attn.testing import DTYPES, budget_for, nan_filled, random_problem, request_for, run_engine

from .row_problems import bits, csr_of, ragged_mask, run_forward, with_wide_indices
from .tile_problems import odd_layouts

LAYOUTS = list(odd_layouts(np.zeros((1, 1, 1))))

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def check(problem, structures):
    out, lse = run_forward(problem, structures)
    budget_for(problem, gradients=False).check(out=out, lse=lse)
    return out, lse


@every_dtype
@pytest.mark.parametrize(
    ("head_dim", "value_dim"), [(1, 1), (3, 16), (16, 3), (40, 40), (64, 64), (100, 64), (64, 200), (7, 333)]
)
def test_head_dims(head_dim, value_dim, dtype):
    mask = ragged_mask(70, 150)
    problem = random_problem(mask, heads=2, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype])
    check(problem, csr_of(mask))


@every_dtype
def test_hard_conditions(dtype):
    """NaN around everything, in everything new, and in every row that takes part in no pair."""
    mask = ragged_mask(90, 120)
    problem = random_problem(mask, heads=4, kv_heads=2, head_dim=24, dtype=DTYPES[dtype], batch=(2,))
    budget_for(problem).check(**run_engine(cpu, problem, csr_of(mask)))


@every_dtype
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_every_head_has_its_own_lists(kv_heads, dtype):
    masks = np.stack([ragged_mask(65, 129, seed) for seed in range(6)])
    masks[3] = False
    masks[4] = True
    problem = random_problem(
        masks, heads=6, kv_heads=kv_heads, head_dim=20, value_dim=12, dtype=DTYPES[dtype], batch=(2,)
    )
    check(problem, [csr_of(mask) for mask in masks])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [511, 512, 513, 1024, 1025, 5000])
def test_long_lists_are_worked_off_in_pieces(length, dtype):
    """Lists around the size of a piece and of a batch, short ones between them, scores that keep rising."""
    mask = np.zeros((9, length), bool)
    mask[[1, 2, 5, 8]] = True
    mask[3, :7] = mask[6, -1] = True
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=17, dtype=DTYPES[dtype])
    problem.q[..., 0] = 3
    problem.k[..., 0] = np.sort(problem.k[..., 0], axis=-1)
    check(problem, csr_of(mask))


def test_a_list_of_a_million_keys():
    mask = np.ones((2, 1_000_000), bool)
    mask[0] = False
    problem = random_problem(mask, head_dim=2, scale=0.5)
    out, lse = run_forward(problem, csr_of(mask))
    expected, expected_lse = reference.forward(*problem.arrays[:3], mask, 0.5)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)


@every_dtype
@pytest.mark.parametrize("scale", [0.0, -0.5, 1e-45, 1e-300, 30.0, -1e4, 1e25, 1e38, 1e300])
def test_scales(scale, dtype):
    """A scale beyond the range of float32 selects the largest score and does nothing else."""
    mask = ragged_mask(40, 60)
    problem = random_problem(mask, heads=2, head_dim=8, dtype=DTYPES[dtype], scale=scale)
    out, lse = run_forward(problem, csr_of(mask))
    if abs(scale) < 100:
        budget_for(problem, gradients=False).check(out=out, lse=lse)
    else:
        expected, _ = reference.forward(*problem.arrays[:3], mask, scale)
        eps = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6, "float64": 1e-12}[dtype]
        close = np.isclose(out.astype(float), expected, rtol=0, atol=4 * eps * np.abs(expected).max())
        # The largest of two scores is a matter of rounding where they are next to equal.
        assert close.all(axis=-1).mean() > 0.9
        assert np.isfinite(out).all()


@every_dtype
@pytest.mark.parametrize(
    "layout", ["Fortran order", "every second element", "backwards", "heads inside", "not aligned"]
)
def test_layouts(layout, dtype):
    mask = ragged_mask(50, 80)
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=32, dtype=DTYPES[dtype], batch=(2,))
    views = problem.with_arrays(*(odd_layouts(array)[layout] for array in problem.arrays))
    structure = csr_of(mask)
    expected = run_forward(problem, structure)
    assert bits(run_forward(views, structure)) == bits(expected)
    request = request_for(problem, structure)
    out, lse = (odd_layouts(np.full(a.shape, np.nan, a.dtype))[layout] for a in expected)
    cpu.forward(request, views.q, views.k, views.v, out, lse)
    assert bits((np.ascontiguousarray(out), np.ascontiguousarray(lse))) == bits(expected)


def test_strides_of_zero():
    mask = ragged_mask(50, 80)
    problem = random_problem(mask, heads=2, kv_heads=2, head_dim=32, batch=(3,))
    q, k, v, dout = problem.arrays
    repeated = problem.with_arrays(
        np.broadcast_to(q[:, :, :1], q.shape),
        np.broadcast_to(k[:1, :1], k.shape),
        np.broadcast_to(v[..., :1], v.shape),
        dout,
    )
    plain = problem.with_arrays(*(np.ascontiguousarray(array) for array in repeated.arrays))
    assert bits(run_forward(repeated, csr_of(mask))) == bits(run_forward(plain, csr_of(mask)))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1), (64, 1), (65, 1), (1, 300)])
def test_sizes_at_the_edge(shape):
    mask = np.ones(shape, bool)
    problem = random_problem(mask, heads=2, head_dim=5)
    out, lse = check(problem, csr_of(mask))
    if shape[1] == 0:
        assert (out == 0).all() and (lse == -np.inf).all()


def test_lse_is_optional_and_other_heads_are_left_alone():
    mask = ragged_mask(30, 40)
    problem = random_problem(mask, heads=4, kv_heads=2, head_dim=8, batch=(2,))
    request = request_for(problem, csr_of(mask))
    expected, expected_lse = run_forward(problem, csr_of(mask))
    selected = np.array([1, 6, 7])
    for with_lse in (False, True):
        out, lse = nan_filled(expected.shape, "f4"), nan_filled(expected_lse.shape, "f4")
        row_forward.forward_rows(
            request, selected, problem.q, problem.k, problem.v, out, lse if with_lse else None
        )
        for actual, whole, written in ((out, expected, True), (lse, expected_lse, with_lse)):
            flat, whole = actual.reshape(8, -1), whole.reshape(8, -1)
            assert np.isnan(np.delete(flat, selected, axis=0)).all()
            assert flat[selected].tobytes() == whole[selected].tobytes() if written else np.isnan(flat).all()


@every_dtype
def test_threads_and_repetition_do_not_change_bits(dtype, monkeypatch):
    mask = ragged_mask(300, 900)
    mask[200] = True
    problem = random_problem(mask, heads=4, kv_heads=2, head_dim=64, dtype=DTYPES[dtype])
    monkeypatch.setattr("numba_sparse_attn.cpu.operands._SERIAL_FLOPS", 0)
    results = []
    for threads in ("1", "2", "2", "3", "7"):
        monkeypatch.setenv("NSA_NUM_THREADS", threads)
        results.append(bits(run_forward(problem, csr_of(mask))))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_copies_waves_and_wide_indices_do_not_change_bits(dtype, monkeypatch):
    masks = np.stack([ragged_mask(60, 500, seed) for seed in range(4)])
    problem = random_problem(masks, heads=4, kv_heads=2, head_dim=64, dtype=DTYPES[dtype], batch=(3,))
    structures = [csr_of(mask) for mask in masks]
    expected = bits(run_forward(problem, structures))
    assert bits(run_forward(problem, [with_wide_indices(csr) for csr in structures])) == expected
    for reads in (0, 10**9):
        monkeypatch.setattr(row_work, "_READS_WORTH_ALIGNING", reads)
        assert bits(run_forward(problem, structures)) == expected
    for size in (1, 500_000, 1 << 40):
        monkeypatch.setattr(row_work, "_WAVE_BYTES", size)
        assert bits(run_forward(problem, structures)) == expected


def test_bits_of_a_row_do_not_depend_on_the_rows_around_it():
    """Row by row, the same as all together: pieces end where the list says and nowhere else."""
    mask = ragged_mask(40, 1500)
    mask[7] = mask[8] = True
    problem = random_problem(mask, head_dim=16)
    out, lse = run_forward(problem, csr_of(mask))
    for row in range(40):
        alone = replace(problem, q=problem.q[:, row : row + 1], dout=problem.dout[:, row : row + 1])
        alone = replace(alone, mask=mask[row : row + 1])
        one, one_lse = run_forward(alone, csr_of(mask[row : row + 1]))
        assert one.tobytes() == out[:, row].tobytes() and one_lse.tobytes() == lse[:, row].tobytes()


def test_values_that_are_not_finite_go_where_a_pair_carries_them():
    mask = ragged_mask(64, 64, seed=3)
    mask[20] = True
    problem = random_problem(mask, head_dim=8, scale=0.3)
    problem.k[0, 5] = -np.inf
    problem.k[0, 9, 2] = np.nan
    problem.v[0, 11] = np.inf
    problem.q[0, 33, 1] = np.inf
    out, lse = run_forward(problem, csr_of(mask))
    expected, expected_lse = reference.forward(*problem.arrays[:3], mask, 0.3)
    assert np.isnan(expected).any() and np.isfinite(expected).any()
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)


def test_scores_of_minus_infinity_weigh_nothing_until_all_are():
    """Two pieces, the first with nothing but scores of -inf; then a row with nothing else at all."""
    mask = np.ones((2, 700), bool)
    mask[1, 600:] = False
    problem = random_problem(mask, head_dim=1, scale=1.0)
    problem.q[...] = 1
    problem.k[0, :600] = -np.inf
    out, lse = run_forward(problem, csr_of(mask))
    expected, expected_lse = reference.forward(*problem.arrays[:3], mask, 1.0)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5)
    assert np.isnan(out[0, 1]).all() and np.isnan(lse[0, 1])
