"""Forward pass of the tile path: exact sets, equal bits, odd memory, values that are not finite."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn import cpu, reference
from numba_sparse_attn.formats.tiles import FULL, TILE
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem, run_engine

from .tile_problems import (
    draw,
    mixed_mask,
    odd_layouts,
    request_of,
    run_forward,
    tiles_of,
    without_full_tiles,
)

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def check(out, lse, q, k, v, mask, scale=0.25):
    """Within a few roundings of the oracle; the error budget proper is in tests/agreement."""
    expected, expected_lse = reference.forward(q, k, v, mask, scale)
    eps = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 3e-6, "float64": 1e-14}[q.dtype.name]
    size = np.nanmax(np.abs(expected), initial=1.0, where=np.isfinite(expected))
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=0, atol=eps * size)
    eps = 1e-13 if q.dtype == np.float64 else 3e-6
    np.testing.assert_allclose(lse, expected_lse, rtol=eps, atol=eps)


@every_dtype
@pytest.mark.parametrize(("n_q", "n_k"), [(300, 700), (129, 257), (64, 1000), (5, 3)])
def test_mixed_masks(n_q, n_k, dtype):
    mask = mixed_mask(n_q, max(n_k, 6))[:, :n_k]
    problem = random_problem(mask, heads=2, head_dim=20, value_dim=13, dtype=DTYPES[dtype])
    budget_for(problem).check(**run_engine(cpu, problem, tiles_of(mask)))


@pytest.mark.parametrize("columns", [1, 2, 63, 64, 65, 127])
def test_lists_that_overflow_at_every_place(columns):
    """As many keys a tile as make the list of a panel run full after each number of tiles."""
    mask = np.zeros((40, 9 * TILE), bool)
    mask[:, np.arange(9 * TILE) % TILE < columns] = True
    mask[7, ::2] = False
    q, k, v = draw((1, 40, 8)), draw((1, 9 * TILE, 8), seed=1), draw((1, 9 * TILE, 8), seed=2)
    check(*run_forward(tiles_of(mask), q, k, v), q, k, v, mask)


@every_dtype
def test_full_and_partial_tiles_give_the_same_bits(dtype):
    """Bug 7 of the field: a mask of ones looked at or not looked at is the same mask."""
    mask = mixed_mask(3 * TILE, 5 * TILE)
    mask[:TILE, TILE : 4 * TILE] = True
    tiles = tiles_of(mask)
    partial = without_full_tiles(tiles)
    assert (tiles.mask_ids == FULL).sum() >= 3
    assert (partial.mask_ids != FULL).all()
    kind = DTYPES[dtype]
    q, k, v = (
        draw((2, 3 * TILE, 24), kind),
        draw((2, 5 * TILE, 24), kind, 1),
        draw((2, 5 * TILE, 24), kind, 2),
    )
    for one, other in zip(run_forward(tiles, q, k, v), run_forward(partial, q, k, v), strict=True):
        assert one.tobytes() == other.tobytes()


def test_threads_do_not_change_bits(monkeypatch):
    mask = mixed_mask(700, 900)
    q, k, v = draw((3, 700, 64)), draw((3, 900, 64), seed=1), draw((3, 900, 64), seed=2)
    results = []
    for threads in ("1", "2", "3", "7"):
        monkeypatch.setenv("NSA_NUM_THREADS", threads)
        results.append([array.tobytes() for array in run_forward(tiles_of(mask), q, k, v)])
    assert all(result == results[0] for result in results)


def test_a_head_does_not_depend_on_the_others():
    masks = [mixed_mask(300, 300, seed) for seed in range(3)]
    tiles = [tiles_of(mask) for mask in masks]
    q, k, v = draw((2, 4, 300, 16)), draw((2, 2, 300, 16), seed=1), draw((2, 2, 300, 16), seed=2)
    which = np.array([[0, 1, 2, 0], [1, 1, 0, 2]], np.int32)
    out, lse = run_forward(tiles, q, k, v, which=which)
    for item in range(2):
        for head in range(4):
            alone = run_forward(
                tiles[which[item, head]],
                q[item, head : head + 1],
                k[item, head // 2, None],
                v[item, head // 2, None],
            )
            assert alone[0].tobytes() == out[item, head].tobytes()
            assert alone[1].tobytes() == lse[item, head].tobytes()


@every_dtype
def test_every_layout_of_memory(dtype):
    kind = DTYPES[dtype]
    mask = mixed_mask(140, 150)
    tiles = tiles_of(mask)
    q, k, v = draw((2, 140, 12), kind), draw((2, 150, 12), kind, 1), draw((2, 150, 10), kind, 2)
    expected = run_forward(tiles, q, k, v)
    for name in odd_layouts(q):
        views = [odd_layouts(array)[name] for array in (q, k, v)]
        out, lse = odd_layouts(np.full((2, 140, 10), np.nan, kind))[name], np.full((140, 2), np.nan).T
        lse = np.full((140, 2), np.nan, expected[1].dtype).T
        before = [view.tobytes() for view in views]
        cpu.forward(request_of(tiles, *views, 0.25), *views, out, lse)
        assert out.tobytes() == expected[0].tobytes(), name
        assert lse.tobytes() == expected[1].tobytes(), name
        assert [view.tobytes() for view in views] == before, name


def test_arrays_with_strides_of_zero():
    mask = mixed_mask(140, 150)
    q = np.broadcast_to(draw((1, 12)), (2, 140, 12))
    k = np.broadcast_to(draw((150, 12), seed=1), (2, 150, 12))
    v = np.broadcast_to(draw((2, 150, 1), seed=2), (2, 150, 8))
    check(*run_forward(tiles_of(mask), q, k, v), q, k, v, mask)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_selected_reaches_nothing(value, dtype):
    """Bug 3 of the field: poison in keys of partial tiles that other queries of the panel do not see."""
    mask = mixed_mask(300, 400)
    dirty = np.zeros(400, bool)
    dirty[[2, 40, 130, 131, 260, 399]] = True
    mask[:, dirty] = False
    mask[17, 40] = mask[200, 131] = True
    q, k, v = draw((1, 300, 16), dtype), draw((1, 400, 16), dtype, 1), draw((1, 400, 16), dtype, 2)
    k[:, dirty] = v[:, dirty] = value
    out, lse = run_forward(tiles_of(mask), q, k, v)
    touched = mask[:, dirty].any(axis=1)
    assert touched.sum() == 2
    clean = np.where(dirty[None, :, None], 0, k), np.where(dirty[None, :, None], 0, v)
    mask[touched] = False
    check(out[:, ~touched], lse[:, ~touched], q[:, ~touched], *clean, mask[~touched])
    assert np.isnan(out[:, touched]).all()


def test_poison_in_values_only_comes_out_where_it_is_selected():
    mask = np.zeros((40, 40), bool)
    mask[:, :20] = True
    mask[3, 30] = True
    q, k, v = draw((1, 40, 8)), draw((1, 40, 8), seed=1), draw((1, 40, 8), seed=2)
    v[0, 30, 5] = np.inf
    v[0, 31] = np.nan
    out, lse = run_forward(tiles_of(mask), q, k, v)
    expected, expected_lse = reference.forward(q, k, v, mask, 0.25)
    assert out[0, 3, 5] == np.inf
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5)


def test_rows_whose_scores_are_all_minus_infinity_are_not_rows_without_keys():
    mask = np.ones((3, 4), bool)
    mask[2] = False
    q, k, v = np.ones((1, 3, 1)), np.full((1, 4, 1), -np.inf), np.ones((1, 4, 1))
    q[0, 1] = -1.0
    out, lse = run_forward(tiles_of(mask), q, k, v)
    assert np.isnan(out[0, :2]).all()
    assert np.isnan(lse[0, :2]).all()
    assert out[0, 2] == 0
    assert lse[0, 2] == -np.inf


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [0.0, -0.3, 1e-30, -1e-30, 1e4, -1e4])
def test_scales(scale, dtype):
    """Bug 17 of the field."""
    mask = mixed_mask(140, 150)
    q, k, v = draw((1, 140, 8), dtype), draw((1, 150, 8), dtype, 1), draw((1, 150, 8), dtype, 2)
    q, k = np.round(q, 1).astype(np.float16).astype(dtype), np.round(k, 1).astype(np.float16).astype(dtype)
    out, lse = run_forward(tiles_of(mask), q, k, v, scale)
    if abs(scale) < 1e4:
        check(out, lse, q, k, v, mask, scale)
        return
    # The largest score of a row decides alone: rows where it is alone by far are exact.
    scores = np.where(mask, scale * (q[0].astype(np.float64) @ k[0].T.astype(np.float64)), -np.inf)
    first, second = np.sort(scores, axis=1)[:, -1], np.sort(scores, axis=1)[:, -2]
    clear = first > second + 200
    assert clear.sum() > 50
    np.testing.assert_array_equal(out[0, clear], v[0, scores.argmax(axis=1)[clear]])
    np.testing.assert_allclose(lse[0], np.where(np.isfinite(first), first, -np.inf), rtol=1e-5, atol=5)


@pytest.mark.parametrize("amplitude", [1e4, 3e4])
def test_scores_of_tens_of_thousands(amplitude):
    mask = mixed_mask(140, 150)
    q, k, v = np.zeros((1, 140, 4), "f4"), np.zeros((1, 150, 4), "f4"), draw((1, 150, 8))
    q[..., 0] = np.where(np.arange(140) % 2, amplitude, -amplitude)
    k[..., 0] = 1.0 + np.arange(150) % 3 * 2.0**-12
    check(*run_forward(tiles_of(mask), q, k, v, 1.0), q, k, v, mask, 1.0)


@pytest.mark.parametrize(("n_q", "n_k"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_attend_to(n_q, n_k):
    q, k, v = draw((2, n_q, 4)), draw((1, n_k, 4)), draw((1, n_k, 3))
    out, lse = run_forward(tiles_of(np.zeros((n_q, n_k), bool)), q, k, v)
    assert (out == 0).all()
    assert (lse == -np.inf).all()


def test_lse_is_optional():
    mask = mixed_mask(140, 150)
    q, k, v = draw((1, 140, 8)), draw((1, 150, 8), seed=1), draw((1, 150, 8), seed=2)
    tiles = tiles_of(mask)
    out = np.full((1, 140, 8), np.nan, "f4")
    cpu.forward(request_of(tiles, q, k, v, 0.25), q, k, v, out, None)
    assert out.tobytes() == run_forward(tiles, q, k, v)[0].tobytes()


def test_why_not_names_what_is_not_supported():
    mask = np.ones((3, 3), bool)
    q = draw((1, 3, 4))
    assert cpu.why_not(request_of(tiles_of(mask), q, q, q, 1.0)) == []
    integers = q.astype(np.int16)
    (reason,) = cpu.why_not(request_of(tiles_of(mask), integers, integers, integers, 1.0))
    assert "int16" in reason
    (reason,) = cpu.why_not(request_of((mask,), q, q, q, 1.0))
    assert "ndarray" in reason
