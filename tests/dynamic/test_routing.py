"""Routes, clusters and buckets: seeds, running means, what a budget promises."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import dynamic
from numba_sparse_attn.dynamic._seeded import normals
from numba_sparse_attn.dynamic.catalogue import Case
from numba_sparse_attn.patterns._random import splitmix64

LAYERS = [(normals(1, (16, 8)), normals(2, (8,))), (normals(3, (8, 6)), normals(4, (6,)))]


def test_normal_numbers_are_normal_and_those_of_the_stream():
    drawn = normals(7, (200_000,))
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1.0) < 0.01
    share = (np.abs(drawn) > 1.959964).mean()
    assert abs(share - 0.05) < 0.002
    first = next(splitmix64(7)) >> 11
    assert normals(7, (1,))[0] < 0.0 and first / 2**53 < 0.5
    assert np.isfinite(normals(2**64 - 1, (10,))).all()


@pytest.mark.parametrize("causal", [False, True])
def test_no_query_sees_more_than_the_budget(causal):
    q, k = Case(60, 90).arrays()
    centroids = dynamic.kmeans_centroids(q, k, 7)
    for budget in ([3, 20], 1):
        for made in (
            dynamic.kmeans_routing(q, k, centroids, budget, causal=causal),
            dynamic.mlp_routing(q, k, LAYERS, budget, causal=causal),
        ):
            for head, pattern in enumerate(made):
                most = budget[head] if isinstance(budget, list) else budget
                assert pattern.toarray().sum(axis=1).max() <= most
    for chunk, rounds in ((1, 1), (4, 3)):
        for pattern in dynamic.lsh(q, k, chunk, 4, rounds=rounds, causal=causal):
            assert pattern.toarray().sum(axis=1).max() <= 2 * chunk * rounds


def test_a_budget_of_all_keys_is_everything():
    q, k = Case(20, 30).arrays()
    everything = nsa.patterns.full(20, n_keys=30)
    assert dynamic.mlp_routing(q, k, LAYERS, 30)[0].equals(everything)
    assert dynamic.kmeans_routing(q, k, np.eye(16)[:1], None)[0].equals(everything)


def test_without_a_budget_clusters_are_a_partition():
    q, _ = Case(50, 50, kv_heads=2).arrays()
    made = dynamic.kmeans_routing(q, q, dynamic.kmeans_centroids(q, q, 5), None)
    for pattern in made:
        mask = pattern.toarray()
        assert (mask == mask.T).all() and mask.diagonal().all()
        np.testing.assert_array_equal(mask @ mask, mask)


def test_centroids_follow_their_tokens():
    """Updated again and again they settle where updating changes nothing, and tokens are nearer to them."""
    q, k = Case(120, 120, seed=4).arrays()
    centroids = first = dynamic.kmeans_centroids(q, k, 4, seed=1)

    def similarity(centers):
        total = 0.0
        for head in range(2):
            for rows in (q[head], k[0]):
                directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
                total += (directions @ centers[head].T).max(axis=1).sum()
        return total

    for _ in range(60):
        centroids = dynamic.kmeans_update(q, k, centroids, decay=0.5)
    assert similarity(centroids) > similarity(first)
    settled = dynamic.kmeans_update(q, k, centroids, decay=0.5)
    np.testing.assert_allclose(settled, centroids, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=2), 1.0, atol=1e-12)
    np.testing.assert_allclose(dynamic.kmeans_update(q, k, first, decay=1.0), first, atol=1e-15)


def test_an_update_is_its_formula():
    q, k = Case(30, 30).arrays()
    centroids = dynamic.kmeans_centroids(q, k, 5, seed=3)
    moved = dynamic.kmeans_update(q, k, centroids, decay=0.9)
    for head in range(2):
        for number, old in enumerate(centroids[head]):
            means = []
            for rows in (q[head], k[0]):
                directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
                mine = directions[(directions @ centroids[head].T).argmax(axis=1) == number]
                means.append(mine.mean(axis=0) if len(mine) else old)
            new = 0.9 * old + 0.05 * (means[0] + means[1])
            np.testing.assert_allclose(moved[head, number], new / np.linalg.norm(new), atol=1e-12)


def test_batches_move_the_same_centroids():
    q, k = Case(30, 30, kv_heads=2).arrays()
    centroids = dynamic.kmeans_centroids(q, k, 3)
    twice = dynamic.kmeans_update(np.stack([q, q]), np.stack([k, k]), centroids, decay=0.5)
    np.testing.assert_allclose(twice, dynamic.kmeans_update(q, k, centroids, decay=0.5), atol=1e-12)


def test_seeds_decide():
    q, k = Case(60, 60).arrays()
    one, again, other = (dynamic.lsh(q, k, 4, 8, seed=seed)[0] for seed in (1, 1, 2))
    assert one.equals(again) and not one.equals(other)
    centers = [dynamic.kmeans_centroids(q, k, 4, seed=seed) for seed in (1, 1, 2)]
    assert (centers[0] == centers[1]).all() and (centers[0] != centers[2]).any()
    assert len(np.unique(centers[0][0], axis=0)) == 4


def test_what_points_the_same_way_is_in_one_bucket():
    """However long it is: angles count. More rounds miss less."""
    q, _ = Case(80, 80, kv_heads=2).arrays()
    same = dynamic.lsh(q, 3.0 * q, 80, 8, rounds=2)
    assert all(pattern.toarray().diagonal().all() for pattern in same)
    recalls = [
        nsa.analysis.recall(q, q, dynamic.lsh(q, q, 80, 8, rounds=rounds)).mean() for rounds in (1, 2, 4)
    ]
    assert recalls == sorted(recalls) and recalls[0] > 80 / 8 / 80


def test_long_routes_are_held_as_lists():
    n = 65_536
    q = np.random.default_rng(0).standard_normal((n, 16)).astype(np.float32)
    made = dynamic.mlp_routing(q, q, [(normals(0, (16, 64)), np.zeros(64))], 256, causal=True)
    assert len(pickle.dumps(made)) < 2e6
    hashed = dynamic.lsh(q, q, 32, 512, rounds=2, causal=True)
    assert len(pickle.dumps(hashed)) < 4e6
    assert hashed.nnz <= n * 4 * 32


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda q: dynamic.lsh(q, q, 4, 3), nsa.PatternError, "an even number, at least 2"),
        (lambda q: dynamic.lsh(q, q, 0, 2), nsa.PatternError, "chunk=0"),
        (lambda q: dynamic.lsh(q, q, 1, 2, rounds=0), nsa.PatternError, "rounds=0"),
        (lambda q: dynamic.lsh(q, q, 1, 2, seed=-1), nsa.PatternError, "seed=-1"),
        (lambda q: dynamic.kmeans_centroids(q, q, 9), nsa.ArgumentError, "9 clusters of 8 keys"),
        (lambda q: dynamic.kmeans_routing(q, q, np.zeros((0, 4)), 1), nsa.ArgumentError, "no centroids"),
        (lambda q: dynamic.kmeans_routing(q, q, np.zeros((3, 5)), 1), nsa.ShapeError, "centroids of float64"),
        (
            lambda q: dynamic.kmeans_update(q, q, np.ones((2, 4)), decay=2.0),
            nsa.ArgumentError,
            "a number from 0 to 1",
        ),
        (lambda q: dynamic.mlp_routing(q, q, [], 1), nsa.ArgumentError, "at least one"),
        (
            lambda q: dynamic.mlp_routing(q, q, [(np.ones((4, 0)), np.ones(0))], 1),
            nsa.ArgumentError,
            "router without routes",
        ),
        (
            lambda q: dynamic.mlp_routing(q, q, [(np.ones((5, 2)), np.ones(2))], 1),
            nsa.ShapeError,
            r"router\[0\]\[0\]",
        ),
        (
            lambda q: dynamic.mlp_routing(
                q, q, [(np.ones((4, 2)), np.ones(2))], 1, router_k=[(np.ones((4, 3)), np.ones(3))]
            ),
            nsa.ArgumentError,
            "as many routes in both",
        ),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call(np.ones((8, 4)))
