"""Gradients of the tile engine against the oracle on a GPU, as ``test_tile.py`` has results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numba_sparse_attn import HeadPatterns, patterns
from numba_sparse_attn.patterns.catalogue import CATALOGUE
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem, request_for

from ...hard_cases import causal_window, ragged
from .test_tile import HEAD_DIMS, every_dtype, tiles_of
from .tile_calls import on_gpu, run_gradients, to_host

pytestmark = pytest.mark.gpu


def check(problem, structures, **settings):
    budget_for(problem).check(**run_gradients(problem, structures, **settings))


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
    ("head_dim", "value_dim"), [(1, 1), (8, 200), (130, 7), (256, 32), (32, 256), (160, 160), (224, 100)]
)
def test_unequal_and_odd_dimensions(head_dim, value_dim):
    mask = ragged(150, 140)
    problem = random_problem(
        mask, heads=4, kv_heads=2, head_dim=head_dim, value_dim=value_dim, dtype=np.float16
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


def test_no_keys_and_no_queries():
    for shape in ((150, 0), (0, 150)):
        problem = random_problem(np.zeros(shape, bool), heads=2, head_dim=64, dtype=np.float16)
        assert not any(gradient.any() for gradient in run_gradients(problem, tiles_of(problem.mask)).values())


@pytest.mark.parametrize("scale", [-0.125, 0.0, 1e-30, -3.0, 40.0])
def test_scales(scale):
    mask = ragged(140, 260)
    problem = random_problem(mask, heads=2, head_dim=64, dtype=np.float16, scale=scale)
    check(problem, tiles_of(mask))


@pytest.mark.parametrize("head_dim", [64, 192])
def test_patterns_that_differ_between_batch_elements_and_heads(head_dim):
    """Heads of one group, too: their lists and masks are one list of the key head."""
    masks = np.stack(
        [ragged(130, 150), causal_window(130, 150), np.ones((130, 150), bool), ragged(130, 150, seed=3)]
    )
    problem = random_problem(masks, heads=4, kv_heads=2, head_dim=head_dim, dtype=np.float16, batch=(3,))
    check(problem, [tiles_of(mask) for mask in masks])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_what_takes_part_in_no_pair_reaches_no_result(poison, head_dim):
    """Rows of all four arrays that some tiles hold and no pair needs, as 0 * nan would let them through."""
    mask = ragged(300, 400)
    mask[:, [3, 130, 390]] = False
    mask[[7, 129], :] = False
    problem = random_problem(mask, heads=4, kv_heads=2, head_dim=head_dim, dtype=np.float16)
    check(problem, tiles_of(mask), poison=poison)


@pytest.mark.parametrize("array", [0, 1, 2, 3])
def test_nan_that_is_selected_spoils_what_selects_it_and_nothing_else(array):
    mask = ragged(200, 300)
    problem = random_problem(mask, heads=1, head_dim=64, dtype=np.float16)
    clean = run_gradients(problem, tiles_of(mask))
    arrays = [one.copy() for one in problem.arrays]
    row = 17
    arrays[array][0, row] = np.nan
    dirty = run_gradients(problem.with_arrays(*arrays), tiles_of(mask))
    # A query with NaN in its weights or slopes, and the keys of such queries.
    queries = np.arange(200) == row if array in (0, 3) else mask[:, row]
    keys = mask[queries].any(axis=0)
    for name, spoilt in (("dq", queries), ("dk", keys), ("dv", keys)):
        if name == "dv" and array == 2:
            continue  # weights know nothing of values
        assert np.isnan(dirty[name][0, spoilt]).any(axis=-1).all(), name
        error = np.abs(dirty[name][0, ~spoilt].astype(float) - clean[name][0, ~spoilt].astype(float))
        assert error.max(initial=0.0) < 2e-2, name  # of other arithmetic, in numbers about 1


@every_dtype
@pytest.mark.parametrize("head_dim", [64, 128])
def test_full_tiles_have_the_bits_of_partial_ones(head_dim, dtype):
    n = 512
    tiles = patterns.block_local(n, 256).tiles()
    ones = np.full((1, 128, 2), ~np.uint64(0))
    last = len(tiles.pool)
    partial = replace(
        tiles,
        pool=np.concatenate([tiles.pool, ones]),
        mask_ids=np.where(tiles.mask_ids == 0, last, tiles.mask_ids).astype(np.int32),
        transposed_mask_ids=np.where(tiles.transposed_mask_ids == 0, last, tiles.transposed_mask_ids).astype(
            np.int32
        ),
    )
    problem = random_problem(np.ones((n, n), bool), heads=2, head_dim=head_dim, dtype=DTYPES[dtype])
    first, second = run_gradients(problem, tiles), run_gradients(problem, partial)
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_same_bits_a_thousand_times(head_dim):
    pattern = patterns.sliding_window(1500, 200) | patterns.random_keys(1500, 40, seed=1)
    problem = random_problem(pattern.toarray(), heads=8, kv_heads=2, head_dim=head_dim, dtype=np.float16)
    run_gradients(problem, pattern.tiles(), repeats=1000)


@pytest.mark.parametrize("head_dim", [40, 35])
def test_strides(head_dim):
    mask = ragged(130, 200)
    straight = random_problem(
        mask, heads=4, kv_heads=2, head_dim=head_dim, value_dim=20, dtype=np.float16, batch=(2, 3)
    )

    def rows_first(array):
        return np.ascontiguousarray(array.swapaxes(-3, -2)).swapaxes(-3, -2)

    def columns_first(array):
        return np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)

    def batches_last(array):
        return np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1)

    for layout in (np.asarray, rows_first, columns_first, batches_last):
        problem = straight.with_arrays(*(layout(array) for array in straight.arrays))
        check(problem, tiles_of(mask))
        check(problem, tiles_of(mask), layout=layout)


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
    q, k, v, dout = (on_gpu(array) for array in problem.arrays)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:-1], device="cuda")
    warm, captured = [[torch.empty_like(one) for one in (q, k, v)] for _ in range(2)]
    names = tuple("dout q k v out lse dq dk dv".split())

    def call(gradients):
        tile.forward(request, *device_views(("q", "k", "v", "out", "lse"), (q, k, v, out, lse)))
        tile.backward(request, *device_views(names, (dout, q, k, v, out, lse, *gradients)))

    call(warm)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # with addresses that are seen for the first time
        call(captured)
    for seed in range(3):
        torch.manual_seed(seed)
        q.normal_()
        graph.replay()
        call(warm)
        torch.cuda.synchronize()
        for one, other in zip(warm, captured, strict=True):
            assert torch.equal(one, other) and to_host(one, np.float16).any()


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
