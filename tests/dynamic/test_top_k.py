"""The largest scores: ties, NaN, and a kernel that keeps a heap."""

from __future__ import annotations

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn.dynamic import _dense
from numba_sparse_attn.dynamic._panels import largest, softmax_rows


@given(st.data())
def test_ties_go_to_the_lower_index(data):
    """Scores of few values, so that nearly all of them are tied; NaN counts as -inf."""
    rows, columns = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = np.array([0.0, 1.0, 2.0, -np.inf, np.nan, np.inf])
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    scores = rng.choice(values, (rows, columns)).astype(dtype)
    limits, budgets = rng.integers(0, columns + 1, rows), rng.integers(0, columns + 3, rows)
    found = largest(scores, limits, budgets)
    ranks = np.where(np.isnan(scores), -np.inf, scores)
    for row in range(rows):
        order = np.argsort(-ranks[row, : limits[row]], kind="stable")[: budgets[row]]
        kept = found[row][found[row] >= 0]
        np.testing.assert_array_equal(kept, np.sort(order))
        event("all of a row" if budgets[row] >= limits[row] else "some of a row")


@given(st.integers(1, 30), st.integers(1, 30), st.booleans(), st.integers(0, 2**32 - 1))
def test_whole_numbers_tie_exactly(n_q, n_k, causal, seed):
    q, k = (np.random.default_rng(seed).integers(-1, 2, (n, 3)).astype(np.float32) for n in (n_q, n_k))
    for budget in (1, 4):
        expected = _dense.best(q @ k.T, _dense.seen(n_q, n_k, causal), budget)
        made = nsa.dynamic.top_k(q, k, budget, causal=causal)
        np.testing.assert_array_equal(made.toarray(), expected)


def test_no_pattern_of_as_many_pairs_keeps_more_weight():
    q, k = np.random.default_rng(0).standard_normal((2, 200, 16))
    best = nsa.analysis.recall(q, k, nsa.dynamic.top_k(q, k, 20))
    for other in (nsa.patterns.random_keys(200, 20, 0), nsa.patterns.sliding_window(200, 9)):
        assert (best >= nsa.analysis.recall(q, k, other) - 1e-12).all()
    weights = nsa.attention_weights(q, k, nsa.patterns.full(200)).toarray()
    np.testing.assert_allclose(best, np.sort(weights, axis=1)[:, -20:].sum(axis=1), rtol=1e-10)


def test_keys_that_are_nan_are_chosen_last():
    q, k = np.random.default_rng(0).standard_normal((2, 10, 4))
    k[[2, 7]] = np.nan
    mask = nsa.dynamic.top_k(q, k, 8).toarray()
    assert not mask[:, [2, 7]].any() and (mask.sum(axis=1) == 8).all()
    out = nsa.sparse_attention(q, k, k, nsa.dynamic.top_k(q, k, 5))
    assert np.isfinite(out).all()


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_softmax_of_rows_is_that_of_the_definition(rows, columns, seed):
    rng = np.random.default_rng(seed)
    scores = 10.0 * rng.standard_normal((rows, columns))
    limits = np.sort(rng.integers(0, columns + 1, rows))
    allowed = np.arange(columns) < limits[:, None]
    expected = _dense.probabilities(scores, allowed)
    np.testing.assert_allclose(softmax_rows(scores.copy(), limits), expected, rtol=1e-12, atol=1e-300)
