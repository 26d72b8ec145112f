"""Kernels behind ``segments.py``: drawing, combining and reading tile rows.

Each ``draw_*`` and ``combine_rows`` works through tile rows and, before it starts one, checks that
its output and the mask pool have room for it. If not it returns early with what it needs; its caller
makes room and calls again from the first unfinished tile row.

Runs in a tile row are emitted in ascending order through :func:`_emit`, which joins neighbors that
share a mask. Coordinates called *local* are relative to a tile: rows and columns 0 .. 127,
differences (column - row) -127 .. 127.
"""

from __future__ import annotations

import numpy as np

from ..jit import inlined, kernel
from .bits import population_count, trailing_zeros
from .pieces import Axis
from .pool import EMPTY, find_signature, intern_mask, mix, store_signature
from .tiles import FULL, TILE, WORDS

_ROW = int(Axis.ROW)
_COLUMN = int(Axis.COLUMN)
_DIFFERENCE = int(Axis.DIFFERENCE)


@inlined
def _emit(runs, count, row_start, begin, end, mask_id):
    """Append a run, or lengthen the previous one of this tile row; returns the new count."""
    if count > row_start and runs[count - 1, 1] == begin and runs[count - 1, 2] == mask_id:
        runs[count - 1, 1] = end
        return count
    runs[count, 0] = begin
    runs[count, 1] = end
    runs[count, 2] = mask_id
    return count + 1


@inlined
def _range_bits(begin, end):
    """Bits begin .. end - 1 of one 64-bit word, for any begin and end."""
    low = min(max(begin, 0), 64)
    high = min(max(end, 0), 64)
    if high <= low:
        return np.uint64(0)
    ones = ~np.uint64(0)
    return (ones >> np.uint64(64 - (high - low))) << np.uint64(low)


@inlined
def _first_hit(low, step, phase):
    """Smallest x >= low with x = phase (mod step)."""
    return low + (phase - low) % step


@inlined
def _local_word(pieces, number, row_begin, row_end, base_row, base_column):
    """A piece inside one tile, in canonical form, as one word; 0 where it has no pair there.

    Bit fields from the low end: row begin 7, row end 8, column begin 7, column end 8, lowest and
    highest difference + 127 8 each, lattice axis 2, lattice step 8. A lattice starts at the lower
    end of its interval, so its phase needs no field. Equal words draw equal bits.
    """
    a = row_begin - base_row
    b = row_end - base_row
    c = max(pieces[number, 2] - base_column, 0)
    e = min(pieces[number, 3] - base_column, TILE)
    base_difference = base_column - base_row
    f = max(pieces[number, 4] - base_difference, c - (b - 1))
    g = min(pieces[number, 5] - base_difference, (e - 1) - a)
    c = max(c, a + f)
    e = min(e, b + g)
    a = max(a, c - g)
    b = min(b, e - f)
    if a >= b or c >= e or f > g:
        return np.uint64(0)
    step = pieces[number, 7]
    axis = pieces[number, 6]
    if step > 1:
        # Shrink the interval that the lattice lives on to its first and last hit.
        low, high, origin = f, g, base_difference
        if axis == _COLUMN:
            low, high, origin = c, e - 1, base_column
        elif axis == _ROW:
            low, high, origin = a, b - 1, base_row
        low = _first_hit(low, step, pieces[number, 8] - origin)
        if low > high:
            return np.uint64(0)
        high = low + (high - low) // step * step
        if axis == _DIFFERENCE:
            f, g = low, high
        elif axis == _COLUMN:
            c, e = low, high + 1
        else:
            a, b = low, high + 1
        if low == high:
            step = np.int64(1)
    if step == 1:
        axis = np.int64(0)
    word = np.uint64(a) | np.uint64(b) << np.uint64(7) | np.uint64(c) << np.uint64(15)
    word |= np.uint64(e) << np.uint64(22) | np.uint64(f + 127) << np.uint64(30)
    return (
        word
        | np.uint64(g + 127) << np.uint64(38)
        | np.uint64(axis) << np.uint64(46)
        | np.uint64(step) << np.uint64(48)
    )


@inlined
def _draw_word(word, mask):
    """Set the bits that a word of :func:`_local_word` stands for."""
    a = np.int64(word & np.uint64(127))
    b = np.int64(word >> np.uint64(7) & np.uint64(255))
    c = np.int64(word >> np.uint64(15) & np.uint64(127))
    e = np.int64(word >> np.uint64(22) & np.uint64(255))
    f = np.int64(word >> np.uint64(30) & np.uint64(255)) - 127
    g = np.int64(word >> np.uint64(38) & np.uint64(255)) - 127
    axis = np.int64(word >> np.uint64(46) & np.uint64(3))
    step = np.int64(word >> np.uint64(48))
    row_step = step if axis == _ROW else np.int64(1)
    column_step = np.int64(1) if axis == _ROW else step
    row = a
    while row < b:
        low = max(c, row + f)
        high = min(e, row + g + 1)
        if column_step == 1:
            mask[WORDS * row] |= _range_bits(low, high)
            mask[WORDS * row + 1] |= _range_bits(low - 64, high - 64)
        else:
            origin = row + f if axis == _DIFFERENCE else c
            column = _first_hit(low, column_step, origin)
            while column < high:
                mask[WORDS * row + (column >> 6)] |= np.uint64(1) << np.uint64(column & 63)
                column += column_step
        row += row_step


@kernel
def draw_pieces(
    pieces,
    first_row_tile,
    done,
    row_tiles,
    heads,
    covered,
    active,
    entry_words,
    entry_next,
    mask,
    pool,
    indptr,
    runs,
):
    """Tile rows of a union of pieces, which are sorted by their first row and clipped to the matrix.

    `heads` and `covered` have one entry a tile column and are -1 and 0 between tile rows: the list
    of a tile's entries (newest first), and whether some piece covers the tile fully. The last number
    returned is the room needed in `entry_words` and `entry_next`. (All scratch comes from the caller:
    an allocation in here would add a quarter of a second to the compilation.)
    """
    masks, table, counts, signature_table, signatures, signature_words, signature = pool
    count = indptr[done]
    number_active = 0
    upcoming = 0
    for row_tile in range(done, row_tiles):
        base_row = (first_row_tile + row_tile) * TILE
        end_row = base_row + TILE
        while upcoming < len(pieces) and pieces[upcoming, 0] < end_row:
            active[number_active] = upcoming
            number_active += 1
            upcoming += 1
        kept = 0
        for position in range(number_active):
            if pieces[active[position], 1] > base_row:
                active[kept] = active[position]
                kept += 1
        number_active = kept

        entries = 0
        low_tile = len(heads)
        high_tile = 0
        for position in range(number_active):
            number = active[position]
            row_begin = max(pieces[number, 0], base_row)
            row_end = min(pieces[number, 1], end_row)
            column_begin = max(pieces[number, 2], row_begin + pieces[number, 4])
            column_end = min(pieces[number, 3], row_end + pieces[number, 5])
            if column_begin >= column_end:
                continue
            tile_begin = column_begin >> 7
            tile_end = (column_end + TILE - 1) >> 7
            full_begin = tile_end
            full_end = tile_end
            if pieces[number, 7] == 1 and row_begin == base_row and row_end == end_row:
                full_begin = (max(pieces[number, 2], end_row - 1 + pieces[number, 4]) + TILE - 1) >> 7
                full_end = min(pieces[number, 3] >> 7, ((base_row + pieces[number, 5] - (TILE - 1)) >> 7) + 1)
                if full_begin >= full_end:
                    full_begin = tile_end
                    full_end = tile_end
            low_tile = min(low_tile, tile_begin)
            high_tile = max(high_tile, tile_end)
            for tile in range(full_begin, full_end):
                covered[tile] = 1
            if entries + (tile_end - tile_begin) > len(entry_words):
                for tile in range(low_tile, high_tile):
                    covered[tile] = 0
                    heads[tile] = -1
                return row_tile, 0, 0, entries + (tile_end - tile_begin)
            tile = tile_begin
            while tile < tile_end:
                if tile == full_begin:
                    tile = full_end
                    continue
                if covered[tile] == 0:
                    word = _local_word(pieces, number, row_begin, row_end, base_row, tile * TILE)
                    if word != 0:
                        entry_words[entries] = word
                        entry_next[entries] = heads[tile]
                        heads[tile] = entries
                        entries += 1
                tile += 1

        touched = 0
        for tile in range(low_tile, high_tile):
            if covered[tile] != 0 or heads[tile] >= 0:
                touched += 1
        if count + touched > len(runs) or counts[0] + min(touched, entries) > len(masks):
            for tile in range(low_tile, high_tile):
                covered[tile] = 0
                heads[tile] = -1
            return row_tile, touched, min(touched, entries), 0

        row_start = count
        for tile in range(low_tile, high_tile):
            if covered[tile] != 0:
                count = _emit(runs, count, row_start, tile, tile + 1, np.int64(FULL))
            elif heads[tile] >= 0:
                entry = heads[tile]
                length = 0
                digest = np.uint64(0)
                while entry >= 0 and length < len(signature):
                    signature[length] = entry_words[entry]
                    digest = mix(digest, entry_words[entry])
                    length += 1
                    entry = entry_next[entry]
                mask_id = np.int64(-2)
                slot = np.int64(0)
                if entry < 0:
                    mask_id, slot = find_signature(
                        signature_table, signatures, signature_words, signature, length, digest
                    )
                if mask_id == -2:
                    for word_index in range(TILE * WORDS):
                        mask[word_index] = 0
                    drawn = heads[tile]
                    while drawn >= 0:
                        _draw_word(entry_words[drawn], mask)
                        drawn = entry_next[drawn]
                    mask_id = intern_mask(masks, table, counts, mask)
                    if entry < 0:
                        store_signature(
                            counts,
                            signature_table,
                            signatures,
                            signature_words,
                            slot,
                            signature,
                            length,
                            mask_id,
                        )
                if mask_id != EMPTY:
                    count = _emit(runs, count, row_start, tile, tile + 1, mask_id)
            covered[tile] = 0
            heads[tile] = -1
        indptr[row_tile + 1] = count
    return row_tiles, 0, 0, 0


@kernel
def draw_rows(indptr_rows, indices, done, row_tiles, slots, touched, scratch, pool, indptr, runs):
    """Tile rows of CSR rows. `slots` is -1 and `scratch` zero between tile rows."""
    masks, table, counts, _, _, _, _ = pool
    count = indptr[done]
    rows = len(indptr_rows) - 1
    for row_tile in range(done, row_tiles):
        number = 0
        for row in range(row_tile * TILE, min(rows, (row_tile + 1) * TILE)):
            for position in range(indptr_rows[row], indptr_rows[row + 1]):
                tile = indices[position] >> 7
                if slots[tile] < 0:
                    slots[tile] = number
                    touched[number] = tile
                    number += 1
        if count + number > len(runs) or counts[0] + number > len(masks):
            for position in range(number):
                slots[touched[position]] = -1
            return row_tile, number, number
        for row in range(row_tile * TILE, min(rows, (row_tile + 1) * TILE)):
            offset = WORDS * (row - row_tile * TILE)
            for position in range(indptr_rows[row], indptr_rows[row + 1]):
                column = np.int64(indices[position])
                bit = np.uint64(1) << np.uint64(column & 63)
                scratch[slots[column >> 7], offset + ((column >> 6) & 1)] |= bit
        ordered = np.sort(touched[:number])
        row_start = count
        for position in range(number):
            tile = ordered[position]
            mask = scratch[slots[tile]]
            mask_id = intern_mask(masks, table, counts, mask)
            count = _emit(runs, count, row_start, tile, tile + 1, mask_id)
            for word in range(TILE * WORDS):
                mask[word] = 0
            slots[tile] = -1
        indptr[row_tile + 1] = count
    return row_tiles, 0, 0


@kernel
def draw_tiles(tiles, row_tile, pool, indptr, runs):
    """One tile row whose masks are given, empty ones included; there is room for all of them."""
    masks, table, counts, _, _, _, _ = pool
    count = row_start = indptr[row_tile]
    for tile in range(len(tiles)):
        mask_id = intern_mask(masks, table, counts, tiles[tile])
        if mask_id != EMPTY:
            count = _emit(runs, count, row_start, tile, tile + 1, mask_id)
    indptr[row_tile + 1] = count


@kernel
def move_masks(source, count, pool, numbers):
    """Enter masks of one pool into another: numbers[i] is what mask i is called there."""
    masks, table, counts, _, _, _, _ = pool
    for number in range(count):
        numbers[number] = intern_mask(masks, table, counts, source[number])


@inlined
def _combine_masks(operation, left, right, memo, masks, table, counts, scratch):
    """Mask id of an operation on two masks (EMPTY allowed), remembered in `memo`."""
    slot = ((left + 1) * 0x9E3779B1 + (right + 1) * 0x85EBCA77) & (len(memo) - 1)
    if memo[slot, 0] == left and memo[slot, 1] == right:
        return memo[slot, 2]
    zero = np.uint64(0)
    ones = ~zero
    both = ones if operation & 0b1000 else zero
    only_left = ones if operation & 0b0100 else zero
    only_right = ones if operation & 0b0010 else zero
    for word in range(TILE * WORDS):
        a = masks[left, word] if left >= 0 else zero
        b = masks[right, word] if right >= 0 else zero
        scratch[word] = (both & a & b) | (only_left & a & ~b) | (only_right & ~a & b)
    result = intern_mask(masks, table, counts, scratch)
    memo[slot, 0] = left
    memo[slot, 1] = right
    memo[slot, 2] = result
    return result


@kernel
def combine_rows(operation, left_indptr, left, right_indptr, right, done, memo, pool, indptr, runs):
    """Tile rows of a set operation: sweep both lists of runs and split them where either changes."""
    masks, table, counts, _, _, _, _ = pool
    count = indptr[done]
    row_tiles = len(indptr) - 1
    scratch = np.empty(TILE * WORDS, np.uint64)
    for row_tile in range(done, row_tiles):
        i, i_end = left_indptr[row_tile], left_indptr[row_tile + 1]
        j, j_end = right_indptr[row_tile], right_indptr[row_tile + 1]
        most = 2 * (i_end - i + j_end - j)
        if count + most > len(runs) or counts[0] + most > len(masks):
            return row_tile, most, most
        row_start = count
        position = 0
        far = np.int64(1) << 40
        while i < i_end or j < j_end:
            left_begin = max(np.int64(left[i, 0]), position) if i < i_end else far
            right_begin = max(np.int64(right[j, 0]), position) if j < j_end else far
            begin = min(left_begin, right_begin)
            left_id, right_id = np.int64(EMPTY), np.int64(EMPTY)
            end = far
            if left_begin == begin:
                left_id = np.int64(left[i, 2])
                end = np.int64(left[i, 1])
            elif i < i_end:
                end = left_begin
            if right_begin == begin:
                right_id = np.int64(right[j, 2])
                end = min(end, np.int64(right[j, 1]))
            elif j < j_end:
                end = min(end, right_begin)
            mask_id = _combine_masks(operation, left_id, right_id, memo, masks, table, counts, scratch)
            if mask_id != EMPTY:
                count = _emit(runs, count, row_start, begin, end, mask_id)
            position = end
            if i < i_end and left[i, 1] <= position:
                i += 1
            if j < j_end and right[j, 1] <= position:
                j += 1
        indptr[row_tile + 1] = count
    return row_tiles, 0, 0


@kernel
def expand(
    run_indptr,
    runs,
    renumber,
    indptr,
    columns,
    mask_ids,
    transposed_indptr,
    transposed_rows,
    transposed_mask_ids,
):
    """Tile lists by row and by column (a counting sort, so rows ascend in every column)."""
    position = 0
    indptr[0] = 0
    for row_tile in range(len(run_indptr) - 1):
        for run in range(run_indptr[row_tile], run_indptr[row_tile + 1]):
            mask_id = renumber[runs[run, 2]]
            for column in range(runs[run, 0], runs[run, 1]):
                columns[position] = column
                mask_ids[position] = mask_id
                transposed_indptr[column + 1] += 1
                position += 1
        indptr[row_tile + 1] = position
    for column in range(len(transposed_indptr) - 1):
        transposed_indptr[column + 1] += transposed_indptr[column]
    cursor = transposed_indptr[:-1].copy()
    for row_tile in range(len(indptr) - 1):
        for position in range(indptr[row_tile], indptr[row_tile + 1]):
            target = cursor[columns[position]]
            cursor[columns[position]] = target + 1
            transposed_rows[target] = row_tile
            transposed_mask_ids[target] = mask_ids[position]


@kernel
def count_row_pairs(run_indptr, runs, masks, indptr):
    """``indptr`` of the CSR rows that runs stand for."""
    rows = len(indptr) - 1
    for row in range(rows):
        total = np.int64(0)
        tile_row = row // TILE
        for run in range(run_indptr[tile_row], run_indptr[tile_row + 1]):
            bits = np.int64(0)
            for word in range(WORDS):
                bits += population_count(masks[runs[run, 2], WORDS * (row % TILE) + word])
            total += bits * (runs[run, 1] - runs[run, 0])
        indptr[row + 1] = indptr[row] + total


@kernel
def fill_row_pairs(run_indptr, runs, masks, indptr, indices):
    """Column indices of the CSR rows that runs stand for."""
    rows = len(indptr) - 1
    for row in range(rows):
        position = indptr[row]
        tile_row = row // TILE
        for run in range(run_indptr[tile_row], run_indptr[tile_row + 1]):
            mask_id = runs[run, 2]
            if mask_id == FULL:
                for column in range(np.int64(runs[run, 0]) * TILE, np.int64(runs[run, 1]) * TILE):
                    indices[position] = column
                    position += 1
                continue
            for tile in range(runs[run, 0], runs[run, 1]):
                for word in range(WORDS):
                    base = np.int64(tile) * TILE + 64 * word
                    bits = masks[mask_id, WORDS * (row % TILE) + word]
                    while bits != 0:
                        indices[position] = base + trailing_zeros(bits)
                        position += 1
                        bits &= bits - np.uint64(1)
