"""Changed scores and sinks on a GPU against the oracle: changes, types, engines, arrays of libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import patterns, scores
from numba_sparse_attn.cuda.warp import lists
from numba_sparse_attn.testing import DTYPES

from ...scores.test_agreement import check, problem_with, ragged
from ...scores.twins import EVERY
from .libraries import each_library, fetch, put

pytestmark = pytest.mark.gpu

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@every_dtype
@pytest.mark.parametrize("name", EVERY)
def test_every_change(name, dtype):
    mask = ragged(70, 90)
    problem, changes = problem_with([name], mask, heads=4, kv_heads=2, head_dim=40, dtype=DTYPES[dtype])
    check(problem, changes, nsa.as_pattern(mask), "cuda-warp")


@every_dtype
@pytest.mark.parametrize("part_keys", [16, 8192])
def test_all_of_them_in_a_row(dtype, part_keys, monkeypatch):
    monkeypatch.setattr(lists, "PART_KEYS", part_keys)
    mask = ragged(60, 100)
    logits = np.array([0.5, -1.0], np.float32)
    problem, changes = problem_with(EVERY, mask, heads=2, head_dim=64, dtype=DTYPES[dtype], sink=logits)
    check(problem, changes, nsa.as_pattern(mask), "cuda-warp")


@pytest.mark.parametrize("name", EVERY)
def test_batches(name):
    mask = ragged(33, 41)
    problem, changes = problem_with([name], mask, heads=4, kv_heads=2, head_dim=16, batch=(2, 3))
    check(problem, changes, nsa.as_pattern(mask), "cuda-warp")


@pytest.mark.parametrize("name", [name for name in EVERY if name != "bias for all"])
def test_patterns_of_their_own_for_heads_of_a_group(name):
    masks = np.stack([ragged(40, 33, seed) for seed in range(4)])
    problem, changes = problem_with([name], masks, heads=4, kv_heads=2, head_dim=32)
    check(problem, changes, nsa.as_pattern(masks), "cuda-warp")


@pytest.mark.parametrize("name", ["alibi", "softcap", "modify", "relative"])
def test_runs_are_staged(name):
    pattern = patterns.longformer(300, window=40, tokens=[0, 150])
    mask = pattern.toarray()
    problem, changes = problem_with([name], mask, heads=4, kv_heads=2, head_dim=64, dtype=DTYPES["float16"])
    for change in changes:
        change.learnable = False
    check(problem, changes, pattern, "cuda-warp")


#: Changes that the tile engine takes.
ON_TILES = ("alibi", "softcap", "relative", "modify")


def check_on_tiles(names, mask, **sizes):
    problem, changes = problem_with(names, mask, **sizes)
    for change in changes:
        if change.kind != "sink":
            change.learnable = False
    check(problem, changes, nsa.as_pattern(mask), "cuda-tile")


@pytest.mark.parametrize("name", ON_TILES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", [40, 64, 128, 192])
def test_every_change_on_tiles(name, dtype, head_dim):
    """Partial tiles in both directions, groups, both passes."""
    check_on_tiles([name], ragged(300, 330), heads=4, kv_heads=2, head_dim=head_dim, dtype=DTYPES[dtype])


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("scale", [None, -0.2])
def test_all_of_them_in_a_row_on_tiles(head_dim, scale):
    logits = np.array([0.5, -1.0], np.float32)
    check_on_tiles(
        ON_TILES, ragged(200, 270), heads=2, head_dim=head_dim, dtype=DTYPES["float16"], sink=logits,
        batch=(2,), scale=scale,
    )  # fmt: skip


@pytest.mark.parametrize("name", ON_TILES)
def test_full_tiles(name):
    """The kernels without masks."""
    mask = np.ones((256, 384), bool)
    check_on_tiles([name], mask, heads=2, kv_heads=1, head_dim=128, dtype=DTYPES["bfloat16"])


@pytest.mark.parametrize("name", ON_TILES)
def test_patterns_of_their_own_for_heads_of_a_group_on_tiles(name):
    masks = np.stack([ragged(140, 133, seed) for seed in range(4)])
    check_on_tiles([name], masks, heads=4, kv_heads=2, head_dim=64, dtype=DTYPES["float16"])


@pytest.mark.parametrize("n_q", [1, 5])
def test_heads_that_stand_behind_one_another(n_q):
    """Queries of a group are rows of one tile, and rows of a few queries and many keys are cut."""
    mask = np.random.default_rng(0).random((n_q, 20_000)) < 0.3
    check_on_tiles(
        ["alibi", "relative", "softcap"], mask, heads=8, kv_heads=2, head_dim=128, dtype=DTYPES["float16"]
    )


@pytest.mark.parametrize("name", [name for name in ON_TILES if name != "modify"])
def test_rows_that_are_cut(name):
    """Parts of a row with all keys, and the kernel that merges them. Functions take the oracle minutes."""
    mask = patterns.sliding_window(3000, 20).toarray()
    mask[[0, 1700]] = True
    check_on_tiles([name], mask, heads=1, head_dim=64, dtype=DTYPES["float16"])


def test_what_functions_make_of_pairs_that_are_not_selected_reaches_nothing():
    def even(score, head, i, j):
        return score if (i + j) % 2 == 0 else math.nan

    pattern = nsa.as_pattern(np.indices((150, 300)).sum(axis=0) % 2 == 0)
    q, dout = np.random.default_rng(0).standard_normal((2, 2, 150, 64)).astype(np.float16)
    k, v = np.random.default_rng(1).standard_normal((2, 2, 300, 64)).astype(np.float16)
    out, pullback = nsa.vjp(q, k, v, pattern, engine="cuda-tile")
    change = scores.modify(even, lambda score, head, i, j: 1.0 if (i + j) % 2 == 0 else math.nan)
    same, pull_same = nsa.vjp(q, k, v, pattern, engine="cuda-tile", scores=change)
    for one, other in zip([out, *pullback(dout)], [same, *pull_same(dout)], strict=True):
        np.testing.assert_allclose(other.astype(float), one.astype(float), atol=4e-3)


@pytest.mark.parametrize("engine", ["cuda-warp", "cuda-tile"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_sinks_on_both_engines(engine, dtype, batch):
    mask = ragged(200, 150)
    logits = np.array([0.5, -np.inf, 3.0, -2.0], np.float32)
    problem, changes = problem_with(
        [], mask, heads=4, kv_heads=2, head_dim=64, batch=batch, dtype=DTYPES[dtype], sink=logits
    )
    check(problem, changes, nsa.as_pattern(mask), engine)


@each_library
def test_arrays_of_libraries(library):
    """Results where the arrays are; gradients of numbers on the host, as the numbers are."""
    pattern = patterns.sliding_window(100, 7)
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, 2, 100, 16)).astype(np.float32)
    change = (
        scores.bias(np.random.default_rng(1).standard_normal((2, pattern.nnz)).astype(np.float32)),
        scores.modify(lambda score, head, i, j: score - 0.1 * abs(i - j)),
        scores.sink(np.zeros(2, np.float32)),
    )
    expected, pullback = nsa.vjp(q, k, v, pattern, scores=change)
    *gradients, learnt = pullback(dout)
    out, pullback = nsa.vjp(*(put(library, array) for array in (q, k, v)), pattern, scores=change)
    *found, also_learnt = pullback(put(library, dout))
    for one, other in zip([expected, *gradients], [out, *found], strict=True):
        np.testing.assert_allclose(fetch(library, other), one, rtol=1e-4, atol=1e-5)
    for one, other in zip(learnt, also_learnt, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


def test_results_have_the_same_bits_every_time():
    pattern = patterns.random_keys(2000, 40, seed=1) | patterns.global_tokens(2000, [5])
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, 2, 2000, 64)).astype(np.float16)
    change = (
        scores.bias(np.zeros(pattern.nnz, np.float32)),
        scores.relative(np.zeros((2, 65))),
        scores.sink(0.0),
    )
    results = []
    for _ in range(20):
        out, pullback = nsa.vjp(q, k, v, pattern, scores=change, engine="cuda-warp")
        *found, learnt = pullback(dout)
        results.append([array.tobytes() for array in (out, *found, *learnt)])
    assert all(result == results[0] for result in results)
