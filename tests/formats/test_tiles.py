"""Tiles: the lane order against its definition, and what a Tiles object says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn import patterns
from numba_sparse_attn.formats import FULL, TILE, WORDS, Tiles, lane_words


def random_pool(count):
    return np.random.default_rng(count).integers(0, 2**64, (count, TILE, WORDS), np.uint64)


def bit(pool, mask, row, column):
    return int(pool[mask, row, column // 64]) >> (column % 64) & 1


def test_lane_words_follow_their_definition():
    pool = random_pool(2)
    words = lane_words(pool)
    assert words.shape == (2, 2, 128) and words.dtype == np.uint64
    for mask in range(2):
        for half in range(2):
            for thread in range(128):
                warp, lane = divmod(thread, 32)
                for element in range(64):
                    row = 64 * half + 16 * warp + lane // 4 + 8 * (element // 2 % 2)
                    column = 8 * (element // 4) + 2 * (lane % 4) + element % 2
                    found = int(words[mask, half, thread]) >> element & 1
                    assert found == bit(pool, mask, row, column)


def test_every_bit_of_a_mask_belongs_to_one_lane_and_element():
    places = set()
    for row, column in np.ndindex(TILE, TILE):
        if (row * 37 + column) % 101:  # one pair in a hundred, no row or column left out
            continue
        pool = np.zeros((1, TILE, WORDS), np.uint64)
        pool[0, row, column // 64] = np.uint64(1) << np.uint64(column % 64)
        words = lane_words(pool)
        (_, half, thread), *others = np.argwhere(words)
        assert not others
        places.add((int(half), int(thread), int(words[0, half, thread]).bit_length() - 1))
    assert len(places) == sum((row * 37 + column) % 101 == 0 for row, column in np.ndindex(TILE, TILE))
    assert lane_words(np.full((1, TILE, WORDS), 2**64 - 1, np.uint64)).min() == 2**64 - 1


def test_an_empty_pool():
    assert lane_words(np.zeros((0, TILE, WORDS), np.uint64)).shape == (0, 2, 128)


def by_hand(pool, shape=(TILE, TILE)):
    """One tile for every mask of the pool, in one row of tiles."""
    count = len(pool)
    ids = np.arange(count, dtype=np.int32)
    bits = np.unpackbits(pool.view(np.uint8)).sum()
    return Tiles(
        shape=shape,
        indptr=np.array([0, count]),
        columns=ids,
        mask_ids=ids,
        transposed_indptr=np.arange(count + 1),
        transposed_rows=np.zeros(count, np.int32),
        transposed_mask_ids=ids,
        pool=pool,
        nnz=int(bits),
    )


def test_transposed_lanes_are_the_lanes_of_the_transposed_masks():
    pool = random_pool(3)
    flipped = np.zeros_like(pool)
    for mask, row, column in np.ndindex(3, TILE, TILE):
        if bit(pool, mask, row, column):
            flipped[mask, column, row // 64] |= np.uint64(1) << np.uint64(row % 64)
    np.testing.assert_array_equal(by_hand(pool).transposed_lanes, lane_words(flipped))


def test_counts_fill_and_size():
    pool = np.zeros((2, TILE, WORDS), np.uint64)
    pool[FULL] = 2**64 - 1
    pool[1, 0, 0] = 7
    tiles = by_hand(pool, (TILE, 2 * TILE))
    assert (tiles.count, tiles.full_count, tiles.partial_count, tiles.nnz) == (2, 1, 1, TILE * TILE + 3)
    assert tiles.fill == (TILE * TILE + 3) / (2 * TILE * TILE)
    assert tiles.nbytes == 2 * pool[0].nbytes + 16 + 8 + 8 + 24 + 8 + 8


@pytest.mark.parametrize("n", [1, 127, 128, 129, 300])
def test_bits_beyond_the_matrix_are_zero_and_the_lists_agree(n):
    pattern = patterns.full(n)
    tiles = pattern.tiles()
    mask = np.zeros((-(-n // TILE) * TILE,) * 2, bool)
    seen_transposed = np.zeros_like(mask)
    for indptr, others, ids, target in (
        (tiles.indptr, tiles.columns, tiles.mask_ids, mask),
        (tiles.transposed_indptr, tiles.transposed_rows, tiles.transposed_mask_ids, seen_transposed.T),
    ):
        for first in range(indptr.size - 1):
            for position in range(indptr[first], indptr[first + 1]):
                bits = np.unpackbits(tiles.pool[ids[position]].view(np.uint8), axis=1, bitorder="little")
                block = bits.astype(bool) if target is mask else bits.T.astype(bool)
                rows = slice(first * TILE, (first + 1) * TILE)
                columns = slice(others[position] * TILE, (others[position] + 1) * TILE)
                target[rows, columns] |= block
    expected = np.zeros_like(mask)
    expected[:n, :n] = True
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(seen_transposed, expected)
    assert tiles.full_count == (n // TILE) ** 2
