"""Other normalisers on the CPU engine: any lists, any memory, equal bits, values that are not finite."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn import Pattern, cpu, normalisers, reference
from numba_sparse_attn.cpu import row_work
from numba_sparse_attn.cpu.normalising import entmax_lse
from numba_sparse_attn.formats import from_mask
from numba_sparse_attn.reference_engine import rule_of
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem, request_for, run_call

from ..normaliser_cases import NORMALISERS, learned
from .row_problems import bits, csr_of, ragged_mask, with_wide_indices
from .tile_problems import odd_layouts

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_normaliser = pytest.mark.parametrize("name", NORMALISERS)


def run(problem, structures, normaliser):
    """All results of the engine, in arrays that start as NaN, in the order in which calls return them."""
    request = request_for(problem, structures, normaliser)
    assert cpu.why_not(request) == []
    out = np.full((*problem.q.shape[:-1], problem.v.shape[-1]), np.nan, problem.dtype)
    lse = np.full(problem.q.shape[:-1], np.nan, problem.accumulator)
    gradients = [np.full(array.shape, np.nan, array.dtype) for array in problem.arrays[:3]]
    dalpha = [np.full(problem.q.shape[-3], np.nan, problem.accumulator)] if normaliser.learnable else []
    cpu.forward(request, *problem.arrays[:3], out, lse)
    q, k, v, dout = problem.arrays
    cpu.backward(request, dout, q, k, v, out, lse, *gradients, *dalpha)
    return [out, lse, *gradients, *dalpha]


@every_dtype
@every_normaliser
def test_hard_conditions(name, dtype):
    """NaN around everything, in everything new, and in every row that takes part in no pair."""
    mask = ragged_mask(60, 90)
    problem = random_problem(
        mask, heads=4, kv_heads=2, head_dim=24, value_dim=17, dtype=DTYPES[dtype], batch=(2,)
    )
    normaliser = NORMALISERS[name]
    budget_for(problem, normaliser=normaliser).check(
        **run_call(problem, mask, engine="cpu", normaliser=normaliser)
    )


@every_dtype
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_alpha_of_every_head_is_learned(kv_heads, dtype):
    mask = ragged_mask(50, 70)
    problem = random_problem(mask, heads=4, kv_heads=kv_heads, head_dim=16, dtype=DTYPES[dtype], batch=(2,))
    results = run_call(problem, mask, engine="cpu", normaliser=learned(4))
    assert results["dalpha"].shape == (4,)
    budget_for(problem, normaliser=learned(4)).check(**results)


@every_dtype
@every_normaliser
def test_every_head_has_its_own_lists(name, dtype):
    masks = np.stack([ragged_mask(40, 70, seed) for seed in range(4)])
    masks[2], masks[3] = False, True
    problem = random_problem(masks, heads=4, kv_heads=2, head_dim=20, value_dim=12, dtype=DTYPES[dtype])
    normaliser = NORMALISERS[name]
    budget_for(problem, normaliser=normaliser).check(
        **run_call(problem, masks, engine="cpu", normaliser=normaliser)
    )


@pytest.mark.parametrize("length", [511, 513, 1025, 5000])
@every_normaliser
def test_rows_of_any_length(name, length):
    mask = np.zeros((9, length), bool)
    mask[[1, 2, 5]] = True
    mask[3, :7] = mask[6, -1] = True
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=9, scale=0.2)
    normaliser = NORMALISERS[name]
    budget_for(problem, normaliser=normaliser).check(
        **run_call(problem, mask, engine="cpu", normaliser=normaliser)
    )


def test_a_row_of_a_million_keys():
    mask = np.ones((2, 1_000_000), bool)
    mask[0] = False
    problem = random_problem(mask, head_dim=2, scale=0.5)
    for normaliser in (normalisers.sparsemax(), normalisers.entmax(1.3)):
        out, lse = run(problem, csr_of(mask), normaliser)[:2]
        rule = rule_of(normaliser, 1)
        expected, expected_lse = reference.forward(*problem.arrays[:3], mask, 0.5, rule=rule)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)


@pytest.mark.parametrize("name", ["sparsemax", "entmax"])
@pytest.mark.parametrize("scale", [0.0, -0.5, 1e-30, 30.0, -1e4, 1e20])
def test_scales(scale, name):
    mask = ragged_mask(40, 60)
    problem = random_problem(mask, heads=2, head_dim=8, dtype=np.float64, scale=scale)
    normaliser = NORMALISERS[name]
    out, lse = run(problem, csr_of(mask), normaliser)[:2]
    rule = rule_of(normaliser, 2)
    expected, expected_lse = reference.forward(*problem.arrays[:3], mask, scale, rule=rule)
    # The largest score decides alone where the scale is large, up to the rounding of the scores.
    np.testing.assert_allclose(
        out, expected, rtol=1e-9, atol=1e-13 * max(1.0, abs(scale)) if scale < 1e9 else 1e-9
    )
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", [1.0, 0.5, 0.9, 0.2, 0.01])
def test_lse_of_rows_that_take_many_steps(step):
    """Scores that double from key to key leave one key out with every step of Newton's."""
    for scores in (
        -(2.0 ** np.arange(-40.0, 12.0)),
        np.concatenate([[0.0], np.full(1000, -1.0 / step)]),
        np.concatenate([[0.0], np.full(100_000, -0.999 / step)]),
        np.zeros(7),
        np.array([3.0]),
        np.array([0.0, -np.inf]),
        -np.geomspace(1e-12, 1e3, 3000),
    ):
        lse = entmax_lse(scores, len(scores), 1.0, step, np.empty(len(scores)))
        weights = np.maximum(0.0, 1.0 + step * (scores - lse)) ** (1.0 / step)
        # Every z is off by a few roundings of 1, and a weight's derivative is at most 1 / step.
        assert abs(weights.sum() - 1.0) <= 8 * np.finfo(float).eps * len(scores) / step


@every_dtype
@pytest.mark.parametrize(
    "layout", ["Fortran order", "every second element", "backwards", "heads inside", "not aligned"]
)
@pytest.mark.parametrize("name", ["softmax_plus_one", "sigmoid", "entmax15"])
def test_layouts(name, layout, dtype):
    mask = ragged_mask(30, 50)
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=32, dtype=DTYPES[dtype], batch=(2,))
    views = problem.with_arrays(*(odd_layouts(array)[layout] for array in problem.arrays))
    normaliser = NORMALISERS[name]
    assert bits(run(views, csr_of(mask), normaliser)) == bits(run(problem, csr_of(mask), normaliser))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1), (64, 1), (65, 1), (1, 300)])
@every_normaliser
def test_sizes_at_the_edge(name, shape):
    mask = np.ones(shape, bool)
    problem = random_problem(mask, heads=2, head_dim=5)
    normaliser = NORMALISERS[name]
    results = run_call(problem, mask, engine="cpu", normaliser=normaliser)
    budget_for(problem, normaliser=normaliser).check(**results)
    if shape[1] == 0:
        assert (results["out"] == 0).all() and (results["lse"] == -np.inf).all()


@pytest.mark.parametrize("name", ["sigmoid", "entmax", "learned"])
def test_threads_waves_and_wide_indices_do_not_change_bits(name, monkeypatch):
    masks = np.stack([ragged_mask(150, 300, seed) for seed in range(4)])
    problem = random_problem(masks, heads=4, kv_heads=2, head_dim=64, batch=(3,))
    structures = [csr_of(mask) for mask in masks]
    normaliser = learned(4) if name == "learned" else NORMALISERS[name]
    expected = bits(run(problem, structures, normaliser))
    monkeypatch.setattr("numba_sparse_attn.cpu.operands._SERIAL_FLOPS", 0)
    for threads in ("1", "2", "7"):
        monkeypatch.setenv("NSA_NUM_THREADS", threads)
        assert bits(run(problem, structures, normaliser)) == expected
    assert bits(run(problem, [with_wide_indices(csr) for csr in structures], normaliser)) == expected
    for size in (1, 500_000, 1 << 40):
        monkeypatch.setattr(row_work, "_WAVE_BYTES", size)
        assert bits(run(problem, structures, normaliser)) == expected


@every_normaliser
def test_values_that_are_not_finite_go_where_a_weight_carries_them(name):
    mask = ragged_mask(64, 64, seed=3)
    mask[20] = True
    problem = random_problem(mask, head_dim=8, scale=0.3)
    problem.k[0, 5] = -np.inf
    problem.k[0, 9, 2] = np.nan
    problem.v[0, 11] = np.inf
    problem.q[0, 33, 1] = np.inf
    normaliser = NORMALISERS[name]
    out, lse = run(problem, csr_of(mask), normaliser)[:2]
    rule = rule_of(normaliser, 1)
    with np.errstate(all="ignore"):
        expected, expected_lse = reference.forward(*problem.arrays[:3], mask, 0.3, rule=rule)
    assert np.isnan(expected).any() and np.isfinite(expected).any()
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)


def test_the_row_path_is_taken_and_tiles_are_refused():
    pattern = Pattern.from_csr(from_mask(np.ones((150, 150), bool)))
    problem = random_problem(np.ones((150, 150), bool), head_dim=8)
    (reason,) = cpu.why_not(request_for(problem, pattern.tiles(), normalisers.sparsemax()))
    assert "Tiles with entmax" in reason
    assert cpu.why_not(request_for(problem, pattern.tiles(), normalisers.softmax_plus_one())) == []
