"""Lists of rows: which rows of a mask a panel is given, in which order, with which lanes."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn.cpu import lists
from numba_sparse_attn.cpu.products import panel_size
from numba_sparse_attn.cpu.vector import address_of
from numba_sparse_attn.formats.tiles import TILE
from numba_sparse_attn.jit import kernel

BASES = (1000, -7)
STRIDES = (64, -3)

every_type = pytest.mark.parametrize("dtype", ["float32", "float64"])


@kernel
def columns_of(like, entries, masks, bases, strides):
    lists.clear_list(address_of(entries))
    count = lists.count_seen_columns(like, address_of(masks))
    lists.append_seen_columns(like, address_of(entries), address_of(masks), bases, strides)
    return count, lists.list_length(address_of(entries)), lists.is_masked(address_of(entries))


@kernel
def rows_of(like, entries, masks, first_lane, bases, strides):
    lists.clear_list(address_of(entries))
    count = lists.count_seen_rows(like, address_of(masks), first_lane)
    lists.append_seen_rows(like, address_of(entries), address_of(masks), first_lane, bases, strides)
    return count, lists.list_length(address_of(entries)), lists.is_masked(address_of(entries))


@kernel
def all_of(entries, bases, strides):
    lists.clear_list(address_of(entries))
    lists.append_all(address_of(entries), bases, strides)
    return lists.list_length(address_of(entries)), lists.is_masked(address_of(entries))


@kernel
def read_both(wide, narrow, index):
    return lists.read_int64(address_of(wide), index), lists.read_int32(address_of(narrow), index)


def random_bits(density):
    bits = np.random.default_rng(int(100 * density)).random((TILE, TILE)) < density
    bits[:, 5] = bits[9] = False
    bits[:, 70] = bits[100] = density > 0
    return bits


def words_of(bits):
    return np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def check(entries, length, rows, bits, panel):
    """The list names `rows`, and its lane masks are the rows of `bits`."""
    assert length == len(rows)
    size = lists.COLUMN // 8
    for column, (base, stride) in enumerate(zip(BASES, STRIDES, strict=True)):
        addresses = entries[column * size : column * size + length]
        np.testing.assert_array_equal(addresses, base + stride * rows)
    masks = entries[lists.MASKS // 8 : lists.MASKS // 8 + length]
    seen = masks[:, None] >> np.arange(panel) & 1
    np.testing.assert_array_equal(seen.astype(bool), bits)


@every_type
@pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 1.0])
def test_columns_that_a_panel_of_rows_sees(density, dtype):
    panel, bits = panel_size(dtype), random_bits(density)
    entries = np.empty(lists.LIST_WORDS, np.int64)
    for first in range(0, TILE, panel):
        mine = bits[first : first + panel]
        count, length, masked = columns_of(
            np.empty(0, dtype), entries, words_of(bits)[first:], BASES, STRIDES
        )
        seen = np.flatnonzero(mine.any(axis=0))
        assert count == len(seen)
        assert masked == (not mine[:, seen].all())
        check(entries, length, seen, mine[:, seen].T, panel)


@every_type
@pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 1.0])
def test_rows_that_a_panel_of_columns_is_seen_by(density, dtype):
    panel, bits = panel_size(dtype), random_bits(density)
    entries = np.empty(lists.LIST_WORDS, np.int64)
    for first in range(0, TILE, panel):
        mine = bits[:, first : first + panel]
        count, length, masked = rows_of(np.empty(0, dtype), entries, words_of(bits), first, BASES, STRIDES)
        seen = np.flatnonzero(mine.any(axis=1))
        assert count == len(seen)
        assert masked == (not mine[seen].all())
        check(entries, length, seen, mine[seen], panel)


def test_a_full_tile_gives_the_list_of_a_mask_of_ones():
    entries = np.empty(lists.LIST_WORDS, np.int64)
    length, masked = all_of(entries, BASES, STRIDES)
    assert not masked
    check(entries, length, np.arange(TILE), np.ones((TILE, 32), bool), 32)


def test_reading_integers():
    wide, narrow = np.array([1, -(2**40)]), np.array([1, -5], np.int32)
    assert read_both(wide, narrow, 1) == (-(2**40), -5)
