"""The error budget lets honest implementations pass and stops small mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn.testing import DTYPES, assert_within_budget, budget_for, random_problem

NAMES = ("out", "lse", "dq", "dk", "dv")
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def tiled(problem, *, tile=32, exponential=np.exp, sums=None):
    """An honest other implementation: online softmax over key tiles, natural exponentials."""
    kind = problem.accumulator.type if sums is None else sums
    q, k, v, dout = (array.astype(kind) for array in problem.arrays)
    group = q.shape[0] // k.shape[0]
    k, v, scale, seen = np.repeat(k, group, 0), np.repeat(v, group, 0), kind(problem.scale), problem.selected
    peak = np.full((*q.shape[:2], 1), -np.inf, kind)
    total, out = np.zeros_like(peak), np.zeros((*q.shape[:2], v.shape[2]), kind)
    with np.errstate(all="ignore"):
        for begin in range(0, k.shape[1], tile):
            keys = slice(begin, begin + tile)
            scores = np.where(seen[..., keys], (q * scale) @ k[:, keys].swapaxes(1, 2), kind(-np.inf))
            new_peak = np.maximum(peak, scores.max(axis=2, keepdims=True))
            finite = np.where(np.isfinite(new_peak), new_peak, kind(0))
            weights, shrink = exponential(scores - finite), exponential(peak - finite)
            total = total * shrink + weights.sum(axis=2, keepdims=True)
            out, peak = out * shrink + weights @ v[:, keys], new_peak
        some = total > 0
        out = np.where(some, out / np.where(some, total, kind(1)), kind(0)).astype(problem.dtype)
        lse = np.where(some, peak + np.log(total), -np.inf).astype(problem.accumulator)
        weights = exponential((q * scale) @ k.swapaxes(1, 2) - lse.astype(kind))
    weights = np.where(seen, weights, kind(0))
    delta = (out.astype(kind) * dout).sum(axis=2, keepdims=True)
    dscores = np.where(seen, weights * (dout @ v.swapaxes(1, 2) - delta), kind(0))
    dk, dv = dscores.swapaxes(1, 2) @ q * scale, weights.swapaxes(1, 2) @ dout
    dk, dv = (grad.reshape(-1, group, *grad.shape[1:]).sum(axis=1) for grad in (dk, dv))
    gradients = (array.astype(problem.dtype) for array in (dscores @ k * scale, dk, dv))
    return dict(zip(NAMES, (out, lse[..., 0], *gradients), strict=True))


def banded(rows, keys, reach=20):
    difference = np.arange(keys) - np.arange(rows)[:, None]
    return np.abs(difference) <= reach


@every_dtype
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 3), (65, 64), (150, 131)])
@pytest.mark.parametrize("scale", [None, 3.0])
def test_honest_implementations_pass(dtype, size, scale):
    problem = random_problem(
        banded(*size), heads=4, kv_heads=2, head_dim=24, value_dim=5, dtype=dtype, scale=scale, seed=sum(size)
    )
    budget = budget_for(problem)
    budget.check(
        **{
            name: array.astype(problem.accumulator if name == "lse" else dtype)
            for name, array in budget.expected.items()
        }
    )
    budget.check(**tiled(problem))


@every_dtype
def test_rows_without_keys_pass_only_as_zero_and_minus_infinity(dtype):
    mask = banded(70, 70)
    mask[[3, 69]] = False
    problem = random_problem(mask, head_dim=8, dtype=dtype)
    budget, results = budget_for(problem), tiled(problem)
    budget.check(**results)
    for name, wrong in (("out", 0.5), ("out", np.nan), ("lse", 0.0), ("lse", np.nan), ("dq", np.nan)):
        bad = results[name].copy()
        bad[0, 3] = wrong
        with pytest.raises(AssertionError, match=name):
            budget.check(**{name: bad})


@every_dtype
@pytest.mark.parametrize("name", NAMES)
def test_the_right_numbers_in_the_wrong_place_fail(dtype, name):
    problem = random_problem(banded(192, 192), heads=2, head_dim=16, dtype=dtype, seed=4)
    budget, result = budget_for(problem), tiled(problem)[name]
    rows = np.arange(192)
    rows[64:128], rows[128:] = np.arange(128, 192), np.arange(64, 128)
    for wrong in (result[:, rows], result[::-1]):
        with pytest.raises(AssertionError, match=rf"{name}: (largest|norm)"):
            budget.check(**{name: wrong})


@pytest.mark.parametrize(
    ("dtype", "noise"), [("float16", 2e-2), ("bfloat16", 1e-1), ("float32", 1e-5), ("float64", 1e-14)]
)
@pytest.mark.parametrize("name", NAMES)
def test_noise_far_above_rounding_fails(dtype, noise, name):
    problem = random_problem(banded(130, 130), heads=2, head_dim=32, dtype=DTYPES[dtype], seed=5)
    budget, result = budget_for(problem), tiled(problem)[name]
    rng = np.random.default_rng(0)
    wrong = (result.astype(float) * (1 + noise * rng.standard_normal(result.shape))).astype(result.dtype)
    with pytest.raises(AssertionError, match=name):
        budget.check(**{name: wrong})


def test_a_rough_exponential_fails_in_float32():
    problem = random_problem(banded(130, 130), head_dim=32)

    def rough(x):
        return (np.exp(x) * (1 + 3e-6 * np.sin(40 * np.where(np.isfinite(x), x, 0)))).astype(np.float32)

    with pytest.raises(AssertionError, match="out"):
        budget_for(problem).check(out=tiled(problem, exponential=rough)["out"])


def test_float32_sums_fail_in_float64_and_float16_sums_in_float32():
    mask = banded(130, 130)
    for dtype, sums in ((np.float64, np.float32), (np.float32, np.float16)):
        problem = random_problem(mask, head_dim=16, dtype=dtype)
        budget, results = budget_for(problem), tiled(problem, sums=sums)
        for name in NAMES:
            with pytest.raises(AssertionError, match=name):
                budget.check(**{name: results[name]})


@every_dtype
def test_one_pair_too_many_or_too_few_fails(dtype):
    mask = banded(100, 100, reach=3)
    problem = random_problem(mask, head_dim=16, dtype=dtype, seed=8)
    budget = budget_for(problem)
    for row, key in ((50, 54), (50, 53)):
        changed = mask.copy()
        changed[row, key] = not changed[row, key]
        results = tiled(random_problem(changed, head_dim=16, dtype=dtype, seed=8))
        for name in ("out", "lse", "dq"):
            with pytest.raises(AssertionError, match=name):
                budget.check(**{name: results[name]})


def test_what_is_expected_beyond_the_range_of_float16_may_be_infinite_but_not_nan():
    expected = np.array([[1e6, 1.0]])
    with np.errstate(over="ignore"):
        result = expected.astype(np.float16)
    assert_within_budget(result, expected, np.zeros((1, 2)), np.float16)
    with pytest.raises(AssertionError, match="nan"):
        assert_within_budget(result * np.float16(np.nan), expected, np.zeros((1, 2)), np.float16)


def test_nan_and_infinity_have_to_be_where_the_oracle_has_them():
    expected = np.array([[np.nan, np.inf, -np.inf, 1.0]])
    assert_within_budget(expected.copy(), expected, np.zeros((1, 4)), np.float64)
    for place in range(4):
        wrong = expected.copy()
        wrong[0, place] = 0.0 if place < 3 else np.nan
        with pytest.raises(AssertionError, match=rf"at \(0, {place}\)"):
            assert_within_budget(wrong, expected, np.zeros((1, 4)), np.float64)


def test_type_and_shape_are_part_of_the_result():
    expected = np.ones((3, 2))
    with pytest.raises(AssertionError, match="float64 instead of float32"):
        assert_within_budget(expected, expected, expected, np.float32)
    with pytest.raises(AssertionError, match=r"shape \(2, 3\)"):
        assert_within_budget(expected.T, expected, expected, np.float64)


def test_each_measure_is_needed():
    expected = np.ones((256, 8))
    low = np.full((256, 8), 1e-3)
    # By maximum: one error is large, the norm hides it.
    actual = expected.copy()
    actual[7, 0] += 3e-3
    with pytest.raises(AssertionError, match="largest error"):
        assert_within_budget(actual, expected, low, np.float64)
    # By norm: the largest error is allowed once, but not everywhere.
    low[:] = 1e-4
    low[0] = 1e-3
    with pytest.raises(AssertionError, match=r"norm of the error .*, allowed \S+$"):
        assert_within_budget(expected + 1e-3, expected, low, np.float64)
    # By rows: what is allowed in the first rows is not allowed in others.
    low[:64], low[64:] = 1e-3, 1e-6
    actual = expected.copy()
    actual[100] += 1e-4
    with pytest.raises(AssertionError, match="rows 64:128"):
        assert_within_budget(actual, expected, low, np.float64)


@pytest.mark.parametrize(("n_q", "n_k"), [(0, 4), (4, 0), (0, 0)])
def test_empty_problems(n_q, n_k):
    problem = random_problem(np.ones((n_q, n_k), bool), heads=2, head_dim=3)
    results = tiled(problem) if n_k else {}
    budget_for(problem).check(**results)


def test_forward_alone():
    problem = random_problem(banded(10, 10), head_dim=4)
    budget = budget_for(problem, gradients=False)
    assert sorted(budget.expected) == ["lse", "out"]
    results = tiled(problem)
    budget.check(out=results["out"], lse=results["lse"])
