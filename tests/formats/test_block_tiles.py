"""Tiles of whole blocks are those that drawing every piece gives, bit for bit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn.formats.block_tiles import fits_tiles, tiles_of_blocks
from numba_sparse_attn.formats.limits import always_of, limits_of
from numba_sparse_attn.patterns._block_tables import BlockTables, stacked_tables


@st.composite
def choices(draw):
    """Tables of several heads, with sizes at tile edges and off them; no block behind what may be seen."""
    n_q, n_k = (draw(st.sampled_from([1, 127, 128, 129, 256, 300, 383, 640])) for _ in range(2))
    block, query_block = (draw(st.sampled_from([128, 256])) for _ in range(2))
    causal = draw(st.booleans())
    reach = limits_of(n_q, n_k, causal=causal, per_row=query_block, block=block).values()
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    tables = []
    for _ in range(draw(st.integers(1, 3))):
        rows = [np.flatnonzero(rng.random(count) < share) for count in reach]
        table = np.full((len(rows), max(map(len, rows))), -1, np.int32)
        for row, mine in zip(table, rows, strict=True):
            row[: len(mine)] = mine
        tables.append(table)
    return BlockTables(stacked_tables(tables), (n_q, n_k), block, query_block, causal)


@given(choices())
def test_tiles_are_those_of_the_pieces(tables):
    for head, tiles in enumerate(tables.tiles):
        drawn = nsa.Pattern.from_pieces(tables.shape, tables.pieces(head)).tiles()
        for name in ("indptr", "columns", "transposed_indptr", "transposed_rows"):
            np.testing.assert_array_equal(getattr(tiles, name), getattr(drawn, name))
        np.testing.assert_array_equal(tiles.pool[tiles.mask_ids], drawn.pool[drawn.mask_ids])
        np.testing.assert_array_equal(
            tiles.pool[tiles.transposed_mask_ids], drawn.pool[drawn.transposed_mask_ids]
        )
        assert (tiles.nnz, tiles.full_count) == (drawn.nnz, drawn.full_count)
        assert len(np.unique(tiles.pool, axis=0)) == len(tiles.pool)
        assert not tiles.columns.flags.writeable and not tiles.pool.flags.writeable
    event(f"causal: {tables.causal}, cut: {tiles.partial_count > 0}, full: {tiles.full_count > 0}")


@given(choices())
def test_patterns_of_tables_are_like_any_other(tables):
    shape, head = tables.shape, len(tables.chosen) - 1
    pattern = nsa.Pattern(shape, tables.sources()[head], "chosen")
    expected = nsa.Pattern.from_pieces(shape, tables.pieces(head)).toarray()
    np.testing.assert_array_equal(pattern.toarray(), expected)
    assert pattern.nnz == expected.sum()
    np.testing.assert_array_equal(pattern.T.toarray(), expected.T)
    np.testing.assert_array_equal((pattern & pattern.causal()).toarray(), pattern.causal().toarray())
    again = pickle.loads(pickle.dumps(pattern))
    np.testing.assert_array_equal(again.toarray(), expected)
    assert len(again.tiles().columns) == len(pattern.tiles().columns)


def test_masks_of_one_call_are_put_in_lane_order_once():
    chosen = np.zeros((3, 2, 1), np.int32)
    one, two, three = tiles_of_blocks(chosen, (256, 256), block=128, query_block=128, causal=True)
    assert one.lanes is two.lanes is three.lanes
    np.testing.assert_array_equal(one.lanes, nsa.formats.lane_words(one.pool))


@pytest.mark.parametrize(
    ("block", "query_block", "fits"), [(128, 128, True), (64, 128, False), (256, 100, False)]
)
def test_other_blocks_are_drawn_piece_by_piece(block, query_block, fits):
    assert fits_tiles(block, query_block) == fits
    q, k = np.random.default_rng(0).standard_normal((2, 2, 400, 8))
    made = nsa.dynamic.block_top_k(q, k, 2, block, query_block=query_block, causal=True)
    pieces = [nsa.Pattern.from_pieces(one.shape, one._source.pieces) for one in made]
    assert all(one.equals(other) for one, other in zip(made, pieces, strict=True))


def test_limits():
    limits = limits_of(9, 20, causal=True, per_row=2, block=4)
    assert limits.values().tolist() == [4, 4, 5, 5, 5] and limits.rows == 5
    always = always_of(4, causal=True, first=1, local=2)
    assert always.own(limits).tolist() == [1, 2, 2, 3, 3]
    assert always.counts(limits).tolist() == [4, 3, 4, 3, 3]
    assert (always.mask(limits, slice(None), 5).sum(axis=1) >= always.counts(limits)).all()
