"""Drawing, combining and reading tile rows, against masks drawn pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from numba_sparse_attn.formats import segments as segments_module
from numba_sparse_attn.formats.pieces import (
    UNBOUNDED,
    Axis,
    PieceArray,
    intersect_pieces,
    make_pieces,
    transpose_pieces,
)
from numba_sparse_attn.formats.pool import MaskPool
from numba_sparse_attn.formats.segments import (
    OPERATIONS,
    Segments,
    combine,
    segments_from_pieces,
    segments_from_rows,
    tile_count,
)
from numba_sparse_attn.formats.tiles import FULL, TILE, Tiles


def dense(pieces: PieceArray, shape: tuple[int, int]) -> np.ndarray:
    """The definition of a piece, applied to every pair."""
    row, column = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    mask = np.zeros(shape, bool)
    for r0, r1, c0, c1, low, high, axis, step, phase in pieces:
        counted = (row, column, column - row)[axis]
        mask |= (
            (row >= r0)
            & (row < r1)
            & (column >= c0)
            & (column < c1)
            & (column - row >= low)
            & (column - row <= high)
            & ((counted - phase) % step == 0)
        )
    return mask


def draw(pieces: PieceArray, shape: tuple[int, int], pool: MaskPool | None = None) -> Segments:
    return segments_from_pieces(pieces, shape, pool or MaskPool(), 0, tile_count(shape[0]))


def mask_of_csr(segments: Segments) -> np.ndarray:
    csr = segments.to_csr()
    mask = np.zeros(csr.shape, bool)
    for row in range(csr.shape[0]):
        indices = csr.indices[csr.indptr[row] : csr.indptr[row + 1]]
        assert np.all(np.diff(indices) > 0)
        mask[row, indices] = True
    return mask


def mask_of_tiles(tiles: Tiles) -> np.ndarray:
    """The mask that the row lists say, after checking that the column lists say the same."""
    rows, columns = len(tiles.indptr) - 1, len(tiles.transposed_indptr) - 1
    bits = np.unpackbits(
        np.ascontiguousarray(tiles.pool).view(np.uint8).reshape(len(tiles.pool), TILE, -1),
        axis=2,
        bitorder="little",
    ).astype(bool)
    assert bits[FULL].all()
    by_row = np.zeros((rows, TILE, columns, TILE), bool)
    by_column = np.zeros_like(by_row)
    for row in range(rows):
        listed = slice(tiles.indptr[row], tiles.indptr[row + 1])
        assert np.all(np.diff(tiles.columns[listed]) > 0)
        for column, mask_id in zip(tiles.columns[listed], tiles.mask_ids[listed], strict=True):
            by_row[row, :, column] = bits[mask_id]
            assert bits[mask_id].any()
    for column in range(columns):
        listed = slice(tiles.transposed_indptr[column], tiles.transposed_indptr[column + 1])
        assert np.all(np.diff(tiles.transposed_rows[listed]) > 0)
        for row, mask_id in zip(
            tiles.transposed_rows[listed], tiles.transposed_mask_ids[listed], strict=True
        ):
            by_column[row, :, column] = bits[mask_id]
    assert np.array_equal(by_row, by_column)
    whole = by_row.reshape(rows * TILE, columns * TILE)
    assert not whole[tiles.shape[0] :].any() and not whole[:, tiles.shape[1] :].any()
    assert whole.sum() == tiles.nnz
    return whole[: tiles.shape[0], : tiles.shape[1]]


@st.composite
def shapes_and_pieces(draw_from: st.DrawFn) -> tuple[tuple[int, int], PieceArray]:
    shape = (draw_from(st.integers(0, 400)), draw_from(st.integers(0, 400)))
    seed = draw_from(st.integers(0, 2**32 - 1))
    number = draw_from(st.integers(0, 40))
    spread = draw_from(st.sampled_from([3, 60, 500]))
    steps = draw_from(
        st.sampled_from([(1,), (1, 200, 400), (1, 2, 3, 7, 16, 64, 100, 127, 128, 130, 254, 255, 256)])
    )
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.integers(-5, shape[0] + 6, (2, number)), axis=0)
    columns = np.sort(rng.integers(-5, shape[1] + 6, (2, number)), axis=0)
    differences = np.sort(rng.integers(-spread, spread + 1, (2, number)), axis=0)
    if rng.random() < 0.3:
        differences = np.array([[-UNBOUNDED] * number, [UNBOUNDED] * number])
    pieces = make_pieces(
        rows=tuple(rows),
        columns=tuple(columns),
        differences=tuple(differences),
        axis=rng.integers(0, 3, number),
        step=rng.choice(steps, number),
        phase=rng.integers(-1000, 1000, number),
    )
    return shape, pieces


@given(shapes_and_pieces())
def test_pieces_are_drawn_pair_by_pair(case):
    shape, pieces = case
    expected = dense(pieces, shape)
    drawn = draw(pieces, shape)
    event(f"tile rows: {min(len(drawn.indptr) - 1, 3)}")
    event(f"more entries than a signature holds: {len(pieces) > 24}")
    assert np.array_equal(mask_of_csr(drawn), expected)
    assert drawn.nnz == expected.sum()
    assert np.array_equal(mask_of_tiles(drawn.to_tiles()), expected)


@given(shapes_and_pieces(), st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.01, 0.0005, 0.0]))
def test_rows_and_pieces_combine(case, seed, density):
    shape, pieces = case
    left_mask = dense(pieces, shape)
    right_mask = np.random.default_rng(seed).random(shape) < density
    pool = MaskPool()
    left = draw(pieces, shape, pool)
    indptr = np.concatenate([[0], np.cumsum(right_mask.sum(axis=1))]).astype(np.int64)
    indices = np.nonzero(right_mask)[1].astype(np.int32)
    right = segments_from_rows(indptr, indices, shape, pool, 0, tile_count(shape[0]))
    assert np.array_equal(mask_of_csr(right), right_mask)
    meanings = {"or": left_mask | right_mask, "and": left_mask & right_mask}
    meanings |= {"sub": left_mask & ~right_mask, "xor": left_mask ^ right_mask}
    assert meanings.keys() == OPERATIONS.keys()
    for operation, expected in meanings.items():
        combined = combine(operation, left, right)
        assert np.array_equal(mask_of_csr(combined), expected), operation
        assert np.array_equal(mask_of_tiles(combined.to_tiles()), expected), operation


@given(shapes_and_pieces())
def test_rows_draw_the_same_runs_as_pieces(case):
    shape, pieces = case
    pool = MaskPool()
    from_pieces = draw(pieces, shape, pool)
    csr = from_pieces.to_csr()
    from_rows = segments_from_rows(csr.indptr, csr.indices, shape, pool, 0, tile_count(shape[0]))
    assert np.array_equal(from_rows.indptr, from_pieces.indptr)
    assert np.array_equal(from_rows.runs, from_pieces.runs)


@given(shapes_and_pieces())
def test_panels_make_the_whole(case):
    shape, pieces = case
    whole = mask_of_csr(draw(pieces, shape))
    for first in range(tile_count(shape[0])):
        panel = segments_from_pieces(pieces, shape, MaskPool(), first, first + 1)
        assert np.array_equal(mask_of_csr(panel), whole[first * TILE : (first + 1) * TILE])


@given(shapes_and_pieces())
def test_transposed_pieces(case):
    shape, pieces = case
    assert np.array_equal(dense(transpose_pieces(pieces), shape[::-1]), dense(pieces, shape).T)


@given(shapes_and_pieces(), st.integers(-300, 300), st.integers(0, 300))
def test_intersected_pieces(case, low, width):
    shape, pieces = case
    other = make_pieces(rows=(0, shape[0]), columns=(3, shape[1] + 1), differences=(low, low + width))
    met = intersect_pieces(pieces, other)
    assert met is not None
    assert np.array_equal(dense(met, shape), dense(pieces, shape) & dense(other, shape))
    with_itself = intersect_pieces(pieces[:1], pieces[:1])
    assert with_itself is not None and np.array_equal(dense(with_itself, shape), dense(pieces[:1], shape))


def test_different_lattices_do_not_meet_in_a_piece():
    everything = {"rows": (0, 9), "columns": (0, 9)}
    left = make_pieces(**everything, axis=Axis.ROW, step=2)
    right = make_pieces(**everything, axis=Axis.COLUMN, step=2)
    assert intersect_pieces(left, right) is None
    assert intersect_pieces(left, left, most=0) is None


def test_equal_lattices_with_other_phases_meet_nowhere():
    left = make_pieces(rows=(0, 9), columns=(0, 9), axis=Axis.ROW, step=2, phase=0)
    right = make_pieces(rows=(0, 9), columns=(0, 9), axis=Axis.ROW, step=2, phase=1)
    met = intersect_pieces(left, right)
    assert met is not None and len(met) == 0


def test_room_runs_out_and_is_made(monkeypatch):
    """Kernels stop between tile rows when the pool or the output is short, and resume."""
    shape = (1000, 1000)
    mask = np.random.default_rng(0).random(shape) < 0.02
    indptr = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int64)
    indices = np.nonzero(mask)[1].astype(np.int32)
    pool = MaskPool()
    assert len(pool.masks) <= 64, "the case must outgrow the first pool"
    rows = segments_from_rows(indptr, indices, shape, pool, 0, 8)
    assert pool.count == 65 and np.array_equal(mask_of_csr(rows), mask)
    ends = np.random.default_rng(1).integers(1, 1001, 1000)
    one_by_one = make_pieces(rows=(np.arange(1000), np.arange(1, 1001)), columns=(0, ends))
    calls = 0
    true_kernel = segments_module.kernels.draw_pieces

    def counted(*arguments):
        nonlocal calls
        calls += 1
        return true_kernel(*arguments)

    monkeypatch.setattr(segments_module.kernels, "draw_pieces", counted)
    drawn = draw(one_by_one, shape)
    assert calls > 1
    assert np.array_equal(mask_of_csr(drawn), dense(one_by_one, shape))


@pytest.mark.parametrize(
    ("name", "pieces", "unique"),
    [
        ("window", make_pieces(rows=(0, 8192), columns=(0, 8192), differences=(-256, 256)), 3),
        ("causal", make_pieces(rows=(0, 8192), columns=(0, 8192), differences=(-UNBOUNDED, 0)), 2),
        ("full", make_pieces(rows=(0, 8192), columns=(0, 8192)), 1),
        ("diagonals", make_pieces(rows=(0, 8192), columns=(0, 8192), step=256), 2),
    ],
)
def test_regular_patterns_have_a_handful_of_masks(name, pieces, unique):
    tiles = draw(pieces, (8192, 8192)).to_tiles()
    assert len(tiles.pool) == unique, name
    assert not any(array.flags.writeable for array in vars(tiles).values() if isinstance(array, np.ndarray))


def test_equal_masks_found_by_other_words_are_one():
    """A rectangle and a band that draw the same bits in a tile share its mask."""
    pool = MaskPool()
    band = draw(make_pieces(rows=(0, 1), columns=(0, 128), differences=(5, 5)), (128, 128), pool)
    cell = draw(make_pieces(rows=(0, 1), columns=(5, 6)), (128, 128), pool)
    assert np.array_equal(band.runs, cell.runs) and pool.count == 2
