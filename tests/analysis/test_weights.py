"""Measures of weights and outputs against their definitions, and the laws that they obey."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import analysis, as_pattern, patterns
from numba_sparse_attn.testing import random_problem, strategies

from .dense import divergence, entropy, probabilities, strongest

small = strategies.problems(largest=70)
EXACT = {"rtol": 1e-9, "atol": 1e-11}


@st.composite
def pairs_of_masks(draw):
    """A problem with its mask, a mask to compare with, and whether that holds the first."""
    problem = draw(small)
    other = draw(strategies.bool_masks(*problem.mask.shape[-2:]))
    inside = draw(st.booleans())
    event("pattern inside of its baseline" if inside else "pattern that may leave its baseline")
    return problem, other | problem.mask if inside else other


def measured(problem, baseline):
    arguments = (problem.q, problem.k, as_pattern(problem.mask))
    settings = {"baseline": as_pattern(baseline), "scale": problem.scale}
    return arguments, settings


@given(small)
def test_entropy(problem):
    found = analysis.attention_entropy(problem.q, problem.k, as_pattern(problem.mask), scale=problem.scale)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, entropy(probabilities(problem, problem.mask)), rtol=1e-9, atol=1e-10)


@given(small, st.sampled_from([0.1, 0.2, 0.5, 1.0]))
def test_effective_attention(problem, share):
    pattern = as_pattern(problem.mask)
    found = analysis.effective_attention(
        problem.q, problem.k, pattern, share=[share, 1.0], scale=problem.scale
    )
    expected = strongest(probabilities(problem, problem.mask), problem.mask, share)
    np.testing.assert_allclose(found[..., 0], expected, **EXACT)
    one = analysis.effective_attention(problem.q, problem.k, pattern, share=share, scale=problem.scale)
    np.testing.assert_array_equal(one, found[..., 0])
    some = np.broadcast_to(problem.mask.any(axis=-1), expected.shape)
    np.testing.assert_allclose(found[..., 1][some], 1.0, rtol=1e-12)


def test_the_strongest_tenth_of_thirty_keys_is_three():
    """0.1 * 30 is a rounding above 3."""
    q, k = np.zeros((1, 1)), np.zeros((30, 1))
    assert analysis.effective_attention(q, k, share=0.1)[0] == pytest.approx(0.1)


@given(pairs_of_masks())
def test_recall_divergence_and_distance(case):
    problem, baseline = case
    arguments, settings = measured(problem, baseline)
    found, dense = probabilities(problem, problem.mask), probabilities(problem, baseline)
    some = dense.any(axis=-1)
    recall = np.where(some, np.where(problem.selected, dense, 0.0).sum(axis=-1), np.nan)
    np.testing.assert_allclose(analysis.recall(*arguments, **settings), recall, **EXACT)
    kl = analysis.kl_divergence(*arguments, **settings)
    np.testing.assert_allclose(kl, divergence(found, dense), rtol=1e-9, atol=1e-10)
    assert np.all(kl[some] >= 0.0)
    distance = np.abs(found - dense).sum(axis=-1) / 2
    distance = np.where(some, np.where(found.any(axis=-1), distance, 1.0), np.nan)
    np.testing.assert_allclose(analysis.total_variation(*arguments, **settings), distance, **EXACT)
    gap = analysis.information_gap(*arguments, **settings)
    np.testing.assert_allclose(gap, entropy(dense) - entropy(found), rtol=1e-9, atol=1e-9)


@given(pairs_of_masks(), st.sampled_from([1, 7, 64, None]))
def test_output_error(case, block):
    problem, baseline = case
    arguments, settings = measured(problem, baseline)
    q, k, pattern = arguments
    error = analysis.output_error(q, k, problem.v, pattern, block=block, **settings)
    v = np.repeat(problem.v.astype(np.float64), q.shape[-3] // k.shape[-3], axis=-3)
    out, exact = (probabilities(problem, mask) @ v for mask in (problem.mask, baseline))
    step = block or max(out.shape[-2], 1)
    begins = range(0, max(out.shape[-2], 1), step)
    assert error.shape == (*out.shape[:-2], *(() if block is None else (len(begins),)))
    for number, begin in enumerate(begins):
        rows = np.s_[..., begin : begin + step, :]
        wrong = np.sqrt(np.square(out[rows] - exact[rows]).sum(axis=(-2, -1)))
        size = np.sqrt(np.square(exact[rows]).sum(axis=(-2, -1)))
        mine = error if block is None else error[..., number]
        for head in np.ndindex(wrong.shape):
            if size[head] > 0.0:
                # Two outputs that are equal but for rounding may differ by a rounding.
                assert mine[head] == pytest.approx(wrong[head] / size[head], rel=1e-8, abs=1e-12)
            else:
                assert mine[head] == (np.inf if wrong[head] > 0.0 else 0.0)


@given(small, st.data())
def test_more_pairs_recall_no_less(problem, data):
    more = data.draw(strategies.bool_masks(*problem.mask.shape[-2:]))
    settings = {"scale": problem.scale}
    first = as_pattern(problem.mask)
    less = analysis.recall(problem.q, problem.k, first, **settings)
    union = analysis.recall(problem.q, problem.k, first | as_pattern(more), **settings)
    assert np.all((union >= less - 1e-12) | np.isnan(less))


@given(small)
def test_all_pairs_lose_nothing(problem):
    n_q, n_k = problem.mask.shape[-2:]
    everything = patterns.full(n_q, n_keys=n_k)
    arguments = (problem.q, problem.k, everything)
    recall = analysis.recall(*arguments, scale=problem.scale)
    assert np.all(recall == (1.0 if n_k else np.nan)) or not n_k
    assert not np.nan_to_num(analysis.kl_divergence(*arguments, scale=problem.scale)).any()
    assert not np.nan_to_num(analysis.total_variation(*arguments, scale=problem.scale)).any()
    error = analysis.output_error(problem.q, problem.k, problem.v, everything, scale=problem.scale)
    assert not error.any()


@given(strategies.problems(names=["float64"], largest=60))
def test_inside_of_the_baseline_one_number_says_all(problem):
    """KL = -log(recall) and TV = 1 - recall."""
    arguments = (problem.q, problem.k, as_pattern(problem.mask))
    recall = analysis.recall(*arguments, scale=problem.scale)
    kl = analysis.kl_divergence(*arguments, scale=problem.scale)
    np.testing.assert_allclose(np.exp(-kl), recall, rtol=1e-12)
    distance = analysis.total_variation(*arguments, scale=problem.scale)
    np.testing.assert_allclose(distance, 1.0 - recall, rtol=1e-9, atol=1e-15)


def test_arrays_without_heads_and_large_scores():
    """Scores of 1e4: entropy is a difference of two such numbers."""
    rng = np.random.default_rng(0)
    q, k = 100 * rng.standard_normal((40, 16)), 100 * rng.standard_normal((50, 16))
    problem = random_problem(np.ones((40, 50), bool), head_dim=16, dtype=np.float64)
    problem = problem.with_arrays(q[None], k[None], k[None], q[None])
    expected = entropy(probabilities(problem, problem.mask))[0]
    np.testing.assert_allclose(analysis.attention_entropy(q, k), expected, atol=1e-8)
    assert analysis.effective_attention(q, k, share=[0.1, 0.2]).shape == (40, 2)
    assert analysis.output_error(q, k, k, patterns.full(40, n_keys=50)).shape == (1,)


def test_keys_that_nobody_sees_may_hold_anything():
    mask = patterns.sliding_window(300, 9).toarray()
    mask[:, 280:] = False
    problem = random_problem(mask, head_dim=8, dtype=np.float64)
    window = as_pattern(mask)
    clean = analysis.effective_attention(problem.q, problem.k, window)
    problem.k[:, 280:] = np.nan
    np.testing.assert_array_equal(analysis.effective_attention(problem.q, problem.k, window), clean)
    entropies = analysis.attention_entropy(problem.q, problem.k, window)
    np.testing.assert_array_equal(np.isnan(entropies[0]), ~mask.any(axis=1))


def test_long_sequences_take_panels_and_no_square():
    """16,384 tokens: a square of float64 would be 2 GB, and panels of it are what is ever held."""
    import tracemalloc

    n = 16_384
    q, k = np.random.default_rng(0).standard_normal((2, n, 4))
    window = patterns.sliding_window(n, 100, causal=True)
    analysis.effective_attention(q[:300], k[:300])  # compile first
    tracemalloc.start()
    held = analysis.effective_attention(q, k, window, share=0.5)
    cells = analysis.attention_map(q, k, window, cells=128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6
    rows = [0, 5, 8_191, n - 1]
    problem = random_problem(np.ones((4, n), bool), head_dim=4, dtype=np.float64)
    problem = problem.with_arrays(q[None, rows], k[None], k[None], q[None, rows])
    away = np.array(rows)[:, None] - np.arange(n)
    seen = (away >= 0) & (away <= 100)
    weights = probabilities(problem, seen)
    np.testing.assert_allclose(held[rows], strongest(weights, seen, 0.5)[0], rtol=1e-10)
    np.testing.assert_allclose(cells.mass.sum(axis=1), 1.0, rtol=1e-12)


def test_arrays_on_a_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(analysis._inputs, "gpu_views", lambda *arrays: arrays)
    with pytest.raises(nsa.ArgumentError, match="GPU memory"):
        analysis.attention_entropy(np.zeros((2, 2)), np.zeros((2, 2)))


def test_refusals():
    q = np.zeros((2, 5, 4), np.float32)
    with pytest.raises(nsa.ShapeError, match="pattern of shape"):
        analysis.recall(q, q, patterns.causal(6))
    with pytest.raises(nsa.ShapeError, match="as many patterns"):
        analysis.recall(q, q, patterns.causal(5).heads(3))
    with pytest.raises(nsa.DtypeError, match="int64"):
        analysis.attention_entropy(q.astype(int), q.astype(int))
    for share in (0.0, 1.5, [0.1, -1.0], np.nan, [[0.5]]):
        with pytest.raises(nsa.ArgumentError, match="share"):
            analysis.effective_attention(q, q, share=share)
    for block in (0, 1.5):
        with pytest.raises(nsa.ArgumentError, match="block"):
            analysis.output_error(q, q, q, patterns.causal(5), block=block)
    with pytest.raises(nsa.ArgumentError, match="cells"):
        analysis.attention_map(q, q, cells=0)
