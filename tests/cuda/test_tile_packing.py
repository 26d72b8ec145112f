"""Query heads packed into rows give the same results, whoever computes them; needs no GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

from numba_sparse_attn import as_pattern, cpu, patterns
from numba_sparse_attn.cuda.tile.packing import pack_groups, stacked
from numba_sparse_attn.cuda.view import DeviceView
from numba_sparse_attn.formats.tiles import FULL
from numba_sparse_attn.testing import random_problem, request_for
from numba_sparse_attn.testing.strategies import bool_masks


def view_of(array):
    return DeviceView(
        array.__array_interface__["data"][0], array.shape, array.strides, array.dtype, 0, 7, "other", array
    )


def array_of(view):
    """What a view shows, of an array whose first element it begins with."""
    return np.lib.stride_tricks.as_strided(view.owner, view.shape, view.strides)


@given(st.data())
def test_stacked_tiles_are_tiles_of_the_stacked_mask(data):
    n_q, n_k = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 300))
    times = data.draw(st.integers(2, 9))
    mask = data.draw(bool_masks(n_q, n_k))
    found = stacked(as_pattern(mask).tiles(), times)
    expected = as_pattern(np.tile(mask, (times, 1))).tiles()
    for name in ("shape", "nnz", "indptr", "columns", "transposed_indptr", "transposed_rows"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
        assert getattr(found, name) is not None
    for ids in ("mask_ids", "transposed_mask_ids"):
        theirs = getattr(expected, ids)
        ours = getattr(found, ids)
        assert np.array_equal(found.pool[ours], expected.pool[theirs])
        assert np.array_equal(ours == FULL, theirs == FULL)
    assert len(found.pool) == len(expected.pool) and found.columns.dtype == expected.columns.dtype


@pytest.mark.parametrize("n_q", [1, 5, 40, 64])
@pytest.mark.parametrize("turned", [False, True])
def test_packed_calls_compute_the_same(n_q, turned):
    masks = [np.random.default_rng(seed).random((n_q, 200)) < 0.4 for seed in range(2)]
    problem = random_problem(
        np.repeat(np.stack(masks), 6, axis=0),
        heads=12,
        kv_heads=2,
        head_dim=16,
        batch=(3,),
        dtype=np.float32,
    )
    q = problem.q
    if turned:  # queries before heads in memory
        q = np.ascontiguousarray(q.swapaxes(-3, -2)).swapaxes(-3, -2)
    tiles = [as_pattern(mask).tiles() for mask in masks]
    request = request_for(problem, tiles[0])
    request.which[...] = np.repeat([0, 1], 6)
    request = replace(request, structures=tuple(tiles))
    out, lse = np.full_like(problem.q, np.nan), np.full(q.shape[:-1], np.nan, np.float32)
    packed, q_view, out_view = pack_groups(request, view_of(q), view_of(out), 4)
    if turned and n_q > 1:
        assert packed is request
        return
    assert (packed.heads, packed.group, packed.n_q) == (2, 1, 6 * n_q)
    assert packed.nnz == request.nnz and packed.memo is not request.memo
    packed_lse = lse.reshape(3, 2, 6 * n_q)
    cpu.forward(packed, array_of(q_view), problem.k, problem.v, array_of(out_view), packed_lse)
    expected, expected_lse = np.empty_like(out), np.empty_like(lse)
    cpu.forward(request, problem.q, problem.k, problem.v, expected, expected_lse)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "n_q", "blocks", "packs"),
    [
        (32, 8, 1, 4, True),
        (32, 8, 1, 132, False),  # all heads run at a time
        (32, 8, 100, 4, False),  # more than half a tile
        (8, 8, 1, 4, False),  # nothing is shared
    ],
)
def test_packing_where_it_helps(heads, kv_heads, n_q, blocks, packs):
    problem = random_problem(
        np.ones((n_q, 64), bool), heads=heads, kv_heads=kv_heads, head_dim=8, dtype=np.float16
    )
    request = request_for(problem, as_pattern(problem.mask).tiles())
    packed, _, _ = pack_groups(request, view_of(problem.q), view_of(problem.q), blocks)
    assert (packed is not request) is packs


def test_groups_with_several_patterns_stay_apart():
    problem = random_problem(np.ones((4, 64), bool), heads=4, kv_heads=1, head_dim=8, dtype=np.float16)
    members = [patterns.sliding_window(64, n).tiles() for n in range(4)]
    request = request_for(problem, members)
    packed, _, _ = pack_groups(request, view_of(problem.q), view_of(problem.q), 1)
    assert packed is request
