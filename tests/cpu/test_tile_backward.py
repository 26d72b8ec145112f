"""Backward pass of the tile path: exact sets, equal bits, odd memory, values that are not finite."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn import cpu, reference
from numba_sparse_attn.formats.tiles import TILE
from numba_sparse_attn.testing import DTYPES

from .tile_problems import (
    draw,
    mixed_mask,
    odd_layouts,
    request_of,
    run_backward,
    run_forward,
    tiles_of,
    without_full_tiles,
)

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def arrays(n_q, n_k, depth=16, value_depth=16, dtype="float32", heads=1, kv_heads=1):
    """dout, q, k and v."""
    return (
        draw((heads, n_q, value_depth), dtype, 4),
        draw((heads, n_q, depth), dtype, 1),
        draw((kv_heads, n_k, depth), dtype, 2),
        draw((kv_heads, n_k, value_depth), dtype, 3),
    )


def gradients(structures, dout, q, k, v, scale=0.25, which=None):
    out, lse = run_forward(structures, q, k, v, scale, which)
    return run_backward(structures, dout, q, k, v, out, lse, scale, which)


def check(results, dout, q, k, v, mask, scale=0.25):
    """Within a few roundings of the oracle; the error budget proper is in tests/agreement."""
    eps = {"float16": 3e-3, "bfloat16": 3e-2, "float32": 5e-6, "float64": 1e-14}[q.dtype.name]
    for result, expected in zip(results, reference.backward(dout, q, k, v, mask, scale), strict=True):
        size = np.nanmax(np.abs(expected), initial=1.0, where=np.isfinite(expected))
        np.testing.assert_allclose(result.astype(np.float64), expected, rtol=0, atol=eps * size)


@every_dtype
@pytest.mark.parametrize(("depth", "value_depth"), [(16, 16), (20, 13), (1, 40), (96, 7)])
def test_mixed_masks(depth, value_depth, dtype):
    """Bug 20 of the field: partial tiles in the backward pass."""
    mask = mixed_mask(300, 460)
    problem = arrays(300, 460, depth, value_depth, DTYPES[dtype], heads=4, kv_heads=2)
    check(gradients(tiles_of(mask), *problem), *problem, mask)


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 127])
def test_lists_that_overflow_at_every_place(rows):
    mask = np.zeros((9 * TILE, 40), bool)
    mask[np.arange(9 * TILE) % TILE < rows] = True
    mask[::2, 7] = False
    problem = arrays(9 * TILE, 40)
    check(gradients(tiles_of(mask), *problem), *problem, mask)


@every_dtype
def test_full_and_partial_tiles_give_the_same_bits(dtype):
    """Bug 7 of the field."""
    mask = mixed_mask(5 * TILE, 3 * TILE)
    mask[TILE : 4 * TILE, :TILE] = True
    tiles = tiles_of(mask)
    problem = arrays(5 * TILE, 3 * TILE, dtype=DTYPES[dtype], heads=2, kv_heads=1)
    for one, other in zip(
        gradients(tiles, *problem), gradients(without_full_tiles(tiles), *problem), strict=True
    ):
        assert one.tobytes() == other.tobytes()


def test_threads_do_not_change_bits(monkeypatch):
    """Bug 13 of the field: the sums of dq are in an order that the number of threads does not enter."""
    mask = mixed_mask(1100, 1300)
    problem = arrays(1100, 1300, 64, 64, heads=2)[:2] + arrays(1100, 1300, 64, 64, kv_heads=2)[2:]
    results = []
    for threads in ("1", "2", "3", "7"):
        monkeypatch.setenv("NSA_NUM_THREADS", threads)
        results.append([array.tobytes() for array in gradients(tiles_of(mask), *problem)])
    assert all(result == results[0] for result in results)


def test_heads_with_patterns_of_their_own():
    """Bug 8 of the field, with groups."""
    masks = np.array([mixed_mask(300, 300, seed) for seed in range(3)])
    masks[2] = False
    which = np.array([[0, 1, 2, 0], [2, 2, 0, 1]], np.int32)
    q, dout = draw((2, 4, 300, 16)), draw((2, 4, 300, 12), seed=1)
    k, v = draw((2, 2, 300, 16), seed=2), draw((2, 2, 300, 12), seed=3)
    results = gradients([tiles_of(mask) for mask in masks], dout, q, k, v, which=which)
    check(results, dout, q, k, v, masks[which])


@every_dtype
def test_every_layout_of_memory(dtype):
    """Bug 9 of the field."""
    kind = DTYPES[dtype]
    mask = mixed_mask(140, 150)
    tiles = tiles_of(mask)
    dout, q, k, v = arrays(140, 150, 12, 10, kind, heads=2, kv_heads=2)
    out, lse = run_forward(tiles, q, k, v)
    expected = run_backward(tiles, dout, q, k, v, out, lse)
    for name in odd_layouts(q):
        views = [odd_layouts(array)[name] for array in (dout, q, k, v, out)]
        targets = [odd_layouts(np.full(array.shape, np.nan, kind))[name] for array in (q, k, v)]
        before = [view.tobytes() for view in views]
        request = request_of(tiles, q, k, v, 0.25)
        cpu.backward(request, *views, np.asfortranarray(lse), *targets)
        for target, gradient in zip(targets, expected, strict=True):
            assert target.tobytes() == gradient.tobytes(), name
        assert [view.tobytes() for view in views] == before, name


def test_arrays_with_strides_of_zero():
    mask = mixed_mask(140, 150)
    q = np.broadcast_to(draw((1, 12)), (2, 140, 12))
    k = np.broadcast_to(draw((150, 12), seed=1), (2, 150, 12))
    v = np.broadcast_to(draw((2, 150, 1), seed=2), (2, 150, 8))
    dout = np.broadcast_to(np.float32(1.5), (2, 140, 8))
    check(gradients(tiles_of(mask), dout, q, k, v), dout, q, k, v, mask)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_selected_reaches_nothing(value, dtype):
    """Bug 3 of the field: poison in keys and queries of tiles where other pairs are selected."""
    mask = mixed_mask(300, 400)
    keys, queries = np.zeros(400, bool), np.zeros(300, bool)
    keys[[2, 40, 130, 131, 260, 399]] = True
    queries[[0, 33, 150, 299]] = True
    mask[:, keys] = mask[queries] = False
    dout, q, k, v = arrays(300, 400, dtype=dtype)
    clean = [array.copy() for array in (dout, q, k, v)]
    for array, rows in ((dout, queries), (q, queries), (k, keys), (v, keys)):
        array[:, rows] = value
    dirty = gradients(tiles_of(mask), dout, q, k, v)
    for result, expected in zip(dirty, gradients(tiles_of(mask), *clean), strict=True):
        np.testing.assert_array_equal(result, expected)
    assert (dirty[0][:, queries] == 0).all()
    assert (dirty[1][:, keys] == 0).all()
    assert (dirty[2][:, keys] == 0).all()


@pytest.mark.parametrize("where", ["dout", "q", "k", "v"])
def test_poison_comes_out_where_it_is_selected(where):
    mask = mixed_mask(200, 300)
    mask[:, 40] = False
    mask[[17, 150], 40] = True
    problem = dict(zip(("dout", "q", "k", "v"), arrays(200, 300), strict=True))
    problem[where][0, 17 if where in ("dout", "q") else 40] = np.nan
    results = gradients(tiles_of(mask), **problem)
    expected = reference.backward(**problem, mask=mask, scale=0.25)
    for result, exact in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, exact, atol=2e-5)


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.0])
def test_scales(scale):
    mask = mixed_mask(140, 150)
    problem = arrays(140, 150, dtype="float64")
    check(gradients(tiles_of(mask), *problem, scale), *problem, mask, scale)


def test_no_gradient_in_gives_exact_zeros_out():
    mask = mixed_mask(140, 150)
    dout, q, k, v = arrays(140, 150)
    for result in gradients(tiles_of(mask), 0 * dout, q, k, v):
        assert (result == 0).all()


@pytest.mark.parametrize(("n_q", "n_k"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_attend_to(n_q, n_k):
    problem = arrays(n_q, n_k, heads=2)
    for result in gradients(tiles_of(np.zeros((n_q, n_k), bool)), *problem):
        assert (result == 0).all()
