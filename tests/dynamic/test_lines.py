"""Landmarks, columns and diagonals: found where they were put."""

from __future__ import annotations

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import dynamic
from numba_sparse_attn.dynamic.catalogue import Case

N = 120


def test_lines_that_were_put_there_are_found():
    """Keys 7 and 50 are loud for everybody; every query wants the key 20 before it."""
    rng = np.random.default_rng(0)
    places = rng.standard_normal((N, 32))
    q, k = 3.0 * np.roll(places, 20, axis=0), places + 0.0
    q = np.concatenate([q, np.full((N, 1), 6.0)], axis=1)
    k = np.concatenate([k, np.zeros((N, 1))], axis=1)
    k[[7, 50], -1] = 14.0
    made = dynamic.vertical_slash(q, k, 2, 2, last=16, causal=True)
    expected = nsa.patterns.vertical_slash(N, [7, 50], [0, 20])
    assert made.equals(expected)
    landmarks = dynamic.landmarks_by_importance(q, k, 2, 3, last=16, causal=True)
    assert landmarks.equals(nsa.patterns.landmarks(N, 3, [7, 50]).causal())


def test_shapes_that_are_not_square_stand_at_the_end():
    """The last rows of a longer call are a call of their own, as far as the last queries judge."""
    q, k = (array[0] for array in Case(N, N, heads=1).arrays())
    whole = dynamic.vertical_slash(q, k, 5, 6, last=10, causal=True)
    tail = dynamic.vertical_slash(q[-30:], k, 5, 6, last=10, causal=True)
    np.testing.assert_array_equal(whole.toarray()[-30:], tail.toarray())
    whole, tail = (
        dynamic.landmarks_by_importance(queries, k, 5, 2, last=10, causal=True) for queries in (q, q[-30:])
    )
    np.testing.assert_array_equal(whole.toarray()[-30:], tail.toarray())


def test_importance_is_weight_received():
    q, k = Case(N, N).arrays()
    made = dynamic.landmarks_by_importance(q, k, 9, 0, causal=True)
    for pattern, weights in zip(made, nsa.attention_weights(q, k, nsa.patterns.causal(N)), strict=True):
        best = np.argsort(-np.asarray(weights.sum(axis=0)).reshape(-1))[:9]
        np.testing.assert_array_equal(np.flatnonzero(pattern.toarray()[-1, :-1]), np.sort(best[best < N - 1]))


def test_every_cluster_has_its_landmark():
    rng = np.random.default_rng(0)
    centers = 10.0 * np.eye(6)
    cluster = rng.integers(0, 6, N)
    k = centers[cluster] + rng.standard_normal((N, 6))
    found = set()
    for seed in range(6):
        made = dynamic.landmarks_by_clustering(k, k, 6, 0, seed=seed)
        landmarks = np.flatnonzero(made.toarray().all(axis=0))
        assert 1 <= len(landmarks) <= 6
        found |= set(cluster[landmarks])
    assert found == set(range(6))


def test_heads_that_share_keys_share_clusters():
    q, k = Case(N, N, heads=4, kv_heads=2).arrays()
    made = dynamic.landmarks_by_clustering(q, k, 5, 1)
    assert made[0].equals(made[1]) and made[2].equals(made[3]) and not made[0].equals(made[2])


def test_more_landmarks_than_keys_are_all_keys():
    q, k = (array[0] for array in Case(10, 10, heads=1).arrays())
    for made in (
        dynamic.landmarks_by_importance(q, k, 99, 0),
        dynamic.landmarks_by_structure(q, k, 99, np.ones(10), 0),
        dynamic.landmarks_by_clustering(q, k, 99, 0, rounds=0),
    ):
        assert made.equals(nsa.patterns.full(10))


def test_tokens_without_strength_are_no_landmarks():
    q = np.zeros((10, 4))
    made = dynamic.landmarks_by_structure(q, q, 5, [0.0, 1.0, 0.0, -2.0, 3.0, 0, 0, 0, 0, 0], 0)
    assert np.flatnonzero(made.toarray().all(axis=0)).tolist() == [1, 4]


def test_a_key_that_is_nan_changes_nothing_else():
    q, k = (array[0] for array in Case(N, N, heads=1).arrays())
    poisoned = k.copy()
    poisoned[40] = np.nan
    kept = np.delete(np.arange(N), 40)
    for select in (
        lambda keys: dynamic.vertical_slash(q, keys, 5, 1, causal=True),
        lambda keys: dynamic.landmarks_by_importance(q, keys, 5, 0, causal=True),
        lambda keys: dynamic.threshold(q, keys, 0.05, causal=True),
    ):
        mask = select(poisoned).toarray()
        assert not mask[np.arange(N) != 40, 40].any()
        assert mask[:, kept].any()
    out = nsa.sparse_attention(q, poisoned, k, dynamic.landmarks_by_importance(q, poisoned, 5, 0))
    assert np.isfinite(out[kept]).all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda q: dynamic.vertical_slash(q, q, 1, 1, last=0), nsa.PatternError, "last=0"),
        (lambda q: dynamic.vertical_slash(q, q, [1, 2], 1), nsa.ArgumentError, "columns with 2 values"),
        (lambda q: dynamic.landmarks_by_importance(q, q, 1, -1), nsa.PatternError, "window=-1"),
        (lambda q: dynamic.landmarks_by_importance(q, q, 1, 1, last=0), nsa.PatternError, "last=0"),
        (lambda q: dynamic.landmarks_by_clustering(q, q, 1, 1, rounds=-1), nsa.PatternError, "rounds=-1"),
        (lambda q: dynamic.landmarks_by_structure(q, q, 1, np.ones(7), 1), nsa.ShapeError, "strength of"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call(np.ones((8, 4)))
