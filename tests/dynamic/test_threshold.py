"""Bounds on weights and scores, and gates: what a sum of weights and a sigmoid promise."""

from __future__ import annotations

import numpy as np
import pytest

import numba_sparse_attn as nsa

Q, K = np.random.default_rng(0).standard_normal((2, 2, 150, 16))


def test_weights_selected_are_at_least_the_bound():
    dense = nsa.attention_weights(Q, K, nsa.patterns.causal(150))
    for head, pattern in enumerate(nsa.dynamic.threshold(Q, K, 0.02, causal=True)):
        weights = dense[head].toarray()
        np.testing.assert_array_equal(pattern.toarray(), weights >= 0.02)
        assert pattern.toarray().sum(axis=1).max() <= 50


def test_a_bound_of_zero_takes_all_that_may_be_seen():
    assert nsa.dynamic.threshold(Q, K, 0.0, causal=True)[0].equals(nsa.patterns.causal(150))
    assert nsa.dynamic.threshold(Q, K, 1.1).nnz == 0


def test_a_higher_bound_selects_a_subset():
    low, high = (nsa.dynamic.threshold(Q, K, bound, of="score")[0] for bound in (0.5, 1.0))
    assert (high - low).nnz == 0 and 0 < high.nnz < low.nnz


def test_scores_that_are_nan_pass_no_bound():
    k = K.copy()
    k[:, 5] = np.nan
    assert not nsa.dynamic.threshold(Q, k, -1e9, of="score")[0].toarray()[:, 5].any()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"bound": np.nan}, nsa.ArgumentError, "bound=nan"),
        ({"bound": "much"}, nsa.ArgumentError, "bound='much'"),
        ({"bound": 0.1, "of": "rank"}, nsa.PatternError, "one of 'weight', 'score'"),
        ({"bound": 0.1, "scale": np.inf}, nsa.ArgumentError, "scale=inf"),
    ],
)
def test_refusals_of_threshold(arguments, error, words):
    with pytest.raises(error, match=words):
        nsa.dynamic.threshold(Q, K, **arguments)


def test_a_gate_of_nothing_but_bias_is_open_or_closed():
    weight = np.zeros(32)
    assert nsa.dynamic.adaptive(Q, K, weight, 0.1, 0.5)[0].nnz == 150 * 150
    assert nsa.dynamic.adaptive(Q, K, weight, [0.1, -0.1], 0.5, causal=True)[0].equals(
        nsa.patterns.causal(150)
    )
    assert nsa.dynamic.adaptive(Q, K, weight, [0.1, -0.1], 0.5)[1].nnz == 0
    # The gate has to be wider open than tau.
    assert nsa.dynamic.adaptive(Q, K, weight, 0.0, 0.5).nnz == 0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"weight": np.zeros(31)}, nsa.ShapeError, r"finite numbers of shape \(32\), or \(2, 32\)"),
        ({"weight": np.zeros((3, 32))}, nsa.ShapeError, r"with shape \(3, 32\) for 2 query heads"),
        ({"weight": np.full(32, np.nan)}, nsa.ShapeError, "weight of float64"),
        ({"weight": np.zeros(32), "tau": 1.0}, nsa.ArgumentError, "tau=1.0; supported: numbers between"),
    ],
)
def test_refusals_of_adaptive(arguments, error, words):
    with pytest.raises(error, match=words):
        nsa.dynamic.adaptive(Q, K, **{"bias": 0.0, "tau": 0.5, **arguments})


def test_rows_of_a_gate_survive_pickling():
    import pickle

    made = nsa.dynamic.adaptive(Q[0], K[0], np.full(32, 0.1), 0.0, 0.5)
    assert pickle.loads(pickle.dumps(made)).equals(made)
