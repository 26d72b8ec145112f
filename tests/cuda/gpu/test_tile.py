"""The tile engine against the oracle on a GPU: patterns, types, dimensions, groups, strides, poison."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numba_sparse_attn import HeadPatterns, as_pattern, patterns
from numba_sparse_attn.patterns.catalogue import CATALOGUE
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem, request_for

from ...hard_cases import ragged
from .tile_calls import on_gpu, run, to_host

pytestmark = pytest.mark.gpu

HEAD_DIMS = (64, 128, 32, 40, 80, 96, 192, 256)
every_dtype = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


def check(problem, structures, **settings):
    budget_for(problem, gradients=False).check(**run(problem, structures, **settings))


def tiles_of(mask):
    return as_pattern(mask).tiles()


@every_dtype
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_pattern(name, dtype):
    entry = CATALOGUE[name]
    pattern = entry.build(**entry.examples[0])
    members = list(pattern) if isinstance(pattern, HeadPatterns) else [pattern]
    head_dim = HEAD_DIMS[(list(CATALOGUE).index(name) + (dtype == "float16")) % 2]
    mask = np.stack([member.toarray() for member in members])
    problem = random_problem(
        mask if len(members) > 1 else mask[0],
        heads=entry.heads or 4,
        kv_heads=entry.heads or 2,
        head_dim=head_dim,
        dtype=DTYPES[dtype],
    )
    check(problem, [member.tiles() for member in members])


@every_dtype
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_head_dimensions_groups_and_rectangles(head_dim, dtype):
    mask = ragged(200, 330)
    value_dim = {40: 24, 192: 128, 80: 112}.get(head_dim, head_dim)
    problem = random_problem(
        mask, heads=6, kv_heads=2, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype], batch=(2,)
    )
    check(problem, tiles_of(mask))


@pytest.mark.parametrize(
    ("n_q", "n_k"), [(1, 1), (1, 700), (64, 128), (65, 129), (127, 256), (400, 3), (256, 640)]
)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_lengths(n_q, n_k, head_dim):
    full = random_problem(np.ones((n_q, n_k), bool), heads=2, head_dim=head_dim, dtype=np.float16)
    check(full, tiles_of(full.mask))
    sparse = np.random.default_rng(n_q).random((n_q, n_k)) < 0.1
    check(replace(full, mask=sparse), tiles_of(sparse))


@pytest.mark.parametrize("n_q", [1, 5, 50])
def test_few_queries_of_grouped_heads(n_q):
    """With more heads than multiprocessors, a group's queries are rows of one tile."""
    mask = np.random.default_rng(n_q).random((n_q, 300)) < 0.5
    mask[n_q // 2] = n_q == 1
    problem = random_problem(mask, heads=32, kv_heads=4, head_dim=64, dtype=np.float16, batch=(16,))
    check(problem, tiles_of(mask))
    check(problem, tiles_of(mask), poison=np.inf)


def test_no_keys_at_all():
    problem = random_problem(np.zeros((150, 0), bool), heads=2, head_dim=64, dtype=np.float16)
    result = run(problem, tiles_of(problem.mask))
    assert not result["out"].any() and np.all(result["lse"] == -np.inf)


@pytest.mark.parametrize("scale", [-0.125, 0.0, 1e-30, -3.0, 40.0])
def test_scales(scale):
    mask = ragged(140, 260)
    problem = random_problem(mask, heads=2, head_dim=64, dtype=np.float16, scale=scale)
    check(problem, tiles_of(mask))


def test_scores_that_grow_along_the_row():
    """The maximum is taken over rarely: here it grows by much, by little, and in some rows only."""
    mask = ragged(256, 1024)
    problem = random_problem(mask, heads=2, head_dim=64, dtype=np.float16, scale=1.0)
    growing = np.linspace(0.1, 3.0, 1024)[:, None] * problem.k.astype(np.float32)
    mild = np.where(np.arange(256)[:, None] % 3, 0.2, 1.0) * problem.q.astype(np.float32)
    problem = replace(problem, q=mild.astype(np.float16), k=growing.astype(np.float16))
    check(problem, tiles_of(mask))


def test_patterns_that_differ_between_batch_elements_and_heads():
    masks = np.stack([ragged(130, 150, seed=head) for head in range(4)])
    problem = random_problem(masks, heads=4, kv_heads=2, head_dim=64, dtype=np.float16, batch=(3,))
    check(problem, [tiles_of(mask) for mask in masks])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_what_no_query_selects_reaches_no_result(poison, head_dim):
    """Keys and values that some tiles hold and no pair needs, as 0 * nan would let them through."""
    mask = ragged(300, 400)
    mask[:, [3, 130, 390]] = False
    mask[7, :] = False
    problem = random_problem(mask, heads=4, kv_heads=2, head_dim=head_dim, dtype=np.float16)
    check(problem, tiles_of(mask), poison=poison)


def test_nan_that_is_selected_spoils_its_rows_and_no_others():
    mask = ragged(200, 300)
    problem = random_problem(mask, heads=1, head_dim=64, dtype=np.float16)
    clean = run(problem, tiles_of(mask))
    v = problem.v.copy()
    v[0, 17] = np.nan
    dirty = run(replace(problem, v=v), tiles_of(mask))
    sees = mask[:, 17]
    assert np.isnan(dirty["out"][0, sees]).all()
    error = np.abs(dirty["out"][0, ~sees].astype(float) - clean["out"][0, ~sees].astype(float))
    assert error.max() < 2e-3  # of other arithmetic, in numbers about 1


@every_dtype
def test_full_tiles_have_the_bits_of_partial_ones(dtype):
    n = 512
    tiles = patterns.block_local(n, 256).tiles()
    ones = np.full((1, 128, 2), ~np.uint64(0))
    partial = replace(
        tiles,
        pool=np.concatenate([tiles.pool, ones]),
        mask_ids=np.where(tiles.mask_ids == 0, len(tiles.pool), tiles.mask_ids).astype(np.int32),
    )
    problem = random_problem(np.ones((n, n), bool), heads=2, head_dim=128, dtype=DTYPES[dtype])
    first, second = run(problem, tiles), run(problem, partial)
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_the_same_bits_a_thousand_times():
    pattern = patterns.sliding_window(1500, 200) | patterns.random_keys(1500, 40, seed=1)
    problem = random_problem(pattern.toarray(), heads=8, kv_heads=2, head_dim=64, dtype=np.float16)
    run(problem, pattern.tiles(), repeats=1000)


def test_strides():
    mask = ragged(130, 200)
    straight = random_problem(
        mask, heads=4, kv_heads=2, head_dim=40, value_dim=20, dtype=np.float16, batch=(2, 3)
    )
    rows_first = [np.ascontiguousarray(a.swapaxes(-3, -2)).swapaxes(-3, -2) for a in straight.arrays]
    columns_first = [np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2) for a in straight.arrays]
    batches_last = [np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1) for a in straight.arrays]
    for arrays in (straight.arrays, rows_first, columns_first, batches_last):
        check(straight.with_arrays(*arrays), tiles_of(mask))


def test_one_key_head_expanded_over_many():
    mask = ragged(100, 150)
    problem = random_problem(mask, heads=4, head_dim=64, dtype=np.float16)
    k, v = (np.broadcast_to(array[:1], array.shape) for array in (problem.k, problem.v))
    check(replace(problem, k=k, v=v), tiles_of(mask))


def test_a_captured_call_is_replayed():
    import torch

    from numba_sparse_attn.cuda import tile
    from numba_sparse_attn.cuda.interchange import device_views

    mask = ragged(256, 256)
    problem = random_problem(mask, heads=2, head_dim=64, dtype=np.float16)
    request = request_for(problem, tiles_of(mask))
    q, k, v = (on_gpu(array) for array in problem.arrays[:3])
    out = torch.empty_like(q)
    warm = torch.empty_like(q)
    tile.forward(request, *device_views(("q", "k", "v", "out"), (q, k, v, warm)), None)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # with an address that is seen for the first time
        tile.forward(request, *device_views(("q", "k", "v", "out"), (q, k, v, out)), None)
    for seed in range(3):
        torch.manual_seed(seed)
        q.normal_()
        graph.replay()
        tile.forward(request, *device_views(("q", "k", "v", "out"), (q, k, v, warm)), None)
        torch.cuda.synchronize()
        assert torch.equal(out, warm) and to_host(out, np.float16).any()
