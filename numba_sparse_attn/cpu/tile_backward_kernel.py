"""The kernel of the backward pass over tiles: all five products of some tile columns of a key head.

The lanes of a panel are keys here. For every panel of a tile column the kernel lists the queries that
see *some* key of the panel, from the transposed tile lists; whenever CAPACITY queries are together,
they go through

    scores   = Q K^T            products = dout V^T                       [queries, panel]
    weights  = exp(scale scores - lse),  gradients = weights (products - delta) scale
    dv^T += dout^T weights      dk^T += Q^T gradients                     [value_dim or depth, panel]
    dq   += gradients K                                                   rows of a buffer

with delta = sum of dout * out along a row. dk and dv of a panel stay in the scratch memory until all
query heads of its group are done.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..formats.tiles import FULL, TILE
from ..jit import inlined, kernel
from .elements import load_row, store_row
from .lists import (
    CAPACITY,
    COLUMN,
    LIST_WORDS,
    MASK_ROW,
    MASKS,
    append_all,
    append_seen_rows,
    clear_list,
    count_seen_rows,
    is_masked,
    list_length,
    read_int32,
    read_int64,
)
from .operands import PADDING, padded
from .products import ROWS, mix_rows, mix_rows_masked, panel_width, score_rows, spread_rows, transpose
from .softmax import gradient_rows
from .vector import address_of, axpy, fill, has_non_finite

__all__ = ["scratch_sizes", "tile_backward_kernel"]


class _Layout(NamedTuple):
    """Sizes, and the addresses of scratch areas.

    `rows` and `ones` serve the transpositions; scores and products [CAPACITY + ROWS, panel] serve all
    panels; lists and the matrices from keys [depth_padded, panel] on are there once for every panel of
    a tile column; key_rows [TILE, width] has the keys themselves, and spare is a row of that width.
    Behind the lists comes a word for every panel: a bit for every key that is not finite.
    """

    size: int
    panel: int
    row_bytes: int
    depth: int
    depth_padded: int
    value_depth: int
    value_padded: int
    width: int
    rows: int
    ones: int
    spare: int
    scores: int
    products: int
    key_rows: int
    keys: int
    key_gradients: int
    values: int
    value_gradients: int
    lists: int


@inlined
def _make_layout(scratch, lists, depth, value_depth, width):
    size = np.int64(scratch.itemsize)
    panel = panel_width(scratch)
    depth_padded = (depth + PADDING - 1) // PADDING * PADDING
    value_padded = (value_depth + PADDING - 1) // PADDING * PADDING
    widest = width if width > value_padded else value_padded
    rows = address_of(scratch)
    ones = rows + panel * widest * size
    spare = ones + widest * size
    scores = spare + width * size
    products = scores + (CAPACITY + ROWS) * panel * size
    key_rows = products + (CAPACITY + ROWS) * panel * size
    keys = key_rows + TILE * width * size
    key_gradients = keys + TILE * depth_padded * size
    values = key_gradients + TILE * depth_padded * size
    value_gradients = values + TILE * value_padded * size
    return _Layout(
        size,
        panel,
        panel * size,
        depth,
        depth_padded,
        value_depth,
        value_padded,
        width,
        rows,
        ones,
        spare,
        scores,
        products,
        key_rows,
        keys,
        key_gradients,
        values,
        value_gradients,
        address_of(lists),
    )


def scratch_sizes(panel: int, depth: int, value_depth: int, width: int) -> tuple[int, int]:
    """Elements of compute type and int64 words that a layout takes."""
    depth, value_depth = padded(depth, PADDING), padded(value_depth, PADDING)
    elements = max(width, value_depth) * (panel + 1) + width + 2 * (CAPACITY + ROWS) * panel
    return elements + TILE * (width + 2 * depth + 2 * value_depth), TILE // panel * (LIST_WORDS + 1)


@inlined
def _begin(scratch, layout, part, code, key, key_stride, key_step, value, value_stride, value_step, count):
    """Transpose `count` keys and values into a panel; returns a bit for every key that is not finite.

    Such a key is a row of zeros in key_rows: 0 times inf or NaN would be NaN.
    """
    size, panel, width, row_bytes = layout.size, layout.panel, layout.width, layout.row_bytes
    key_rows = layout.key_rows + part * panel * width * size
    place = (key_rows - layout.rows) // size
    fill(scratch, key_rows, panel * width, scratch.dtype.type(0.0))
    fill(scratch, layout.rows, panel * layout.value_padded, scratch.dtype.type(0.0))
    for r in range(count):
        load_row(code, key + r * key_stride, key_step, layout.depth, scratch, place + r * width)
        row = r * layout.value_padded
        load_row(code, value + r * value_stride, value_step, layout.value_depth, scratch, row)
    keys = layout.keys + part * layout.depth_padded * row_bytes
    broken = transpose(
        scratch, key_rows, width * size, panel, layout.depth_padded, layout.ones, keys, row_bytes
    )
    values = layout.values + part * layout.value_padded * row_bytes
    value_bytes = layout.value_padded * size
    transpose(scratch, layout.rows, value_bytes, panel, layout.value_padded, layout.ones, values, row_bytes)
    clear_list(layout.lists + part * (8 * LIST_WORDS))
    lanes = 0
    if broken:
        for r in range(count):
            row = key_rows + r * width * size
            if has_non_finite(scratch, row, layout.depth):
                lanes |= 1 << r
                fill(scratch, row, layout.depth, scratch.dtype.type(0.0))
    return lanes


@inlined
def _work_off(scratch, layout, part, scale, finite_queries, broken):
    """All five products for the queries that a panel has collected."""
    row_bytes, width = layout.row_bytes, layout.width
    entries = layout.lists + part * (8 * LIST_WORDS)
    count = list_length(entries)
    if count == 0:
        return
    queries, incoming, targets, statistics, masks = (
        entries,
        entries + COLUMN,
        entries + 2 * COLUMN,
        entries + 3 * COLUMN,
        entries + MASKS,
    )
    scores, products = layout.scores, layout.products
    keys = layout.keys + part * layout.depth_padded * row_bytes
    values = layout.values + part * layout.value_padded * row_bytes
    key_gradients = layout.key_gradients + part * layout.depth_padded * row_bytes
    value_gradients = layout.value_gradients + part * layout.value_padded * row_bytes
    key_rows = layout.key_rows + part * layout.panel * width * layout.size
    masked = is_masked(entries)
    score_rows(scratch, queries, count, keys, layout.depth, scores)
    score_rows(scratch, incoming, count, values, layout.value_depth, products)
    gradient_rows(scratch, scores, products, count, masks, statistics, scale)
    if finite_queries or not masked:
        mix_rows(scratch, incoming, count, scores, layout.value_depth, value_gradients)
        mix_rows(scratch, queries, count, products, layout.depth, key_gradients)
    else:
        mix_rows_masked(scratch, incoming, count, scores, layout.value_depth, value_gradients, masks)
        mix_rows_masked(scratch, queries, count, products, layout.depth, key_gradients, masks)
    spread_rows(scratch, targets, count, products, key_rows, width, layout.spare)
    lane = 0
    while broken >> lane != 0:
        if broken >> lane & 1:
            # The part of a key that is not finite, pair by pair.
            place = (keys - layout.rows) // layout.size + lane
            for c in range(layout.depth):
                scratch[c] = scratch[place + c * layout.panel]
            place = (products - layout.rows) // layout.size + lane
            for r in range(count):
                if read_int64(masks, r) >> lane & 1:
                    gradient = scratch[place + r * layout.panel]
                    axpy(scratch, gradient, layout.rows, read_int64(targets, r), layout.depth)
        lane += 1
    clear_list(entries)


@inlined
def _end(scratch, layout, gradients, depth, row_elements, code, target, stride, step, count):
    """Write `count` rows of the transposed `gradients` [row_elements, panel]."""
    row_bytes = row_elements * layout.size
    transpose(
        scratch, gradients, layout.row_bytes, row_elements, layout.panel, layout.ones, layout.rows, row_bytes
    )
    for r in range(count):
        store_row(code, target + r * stride, step, depth, scratch, r * row_elements)


@kernel
def tile_backward_kernel(
    scratch,
    lists,
    structures,
    heads,
    group,
    slots,
    n_k,
    depth,
    value_depth,
    width,
    code,
    gradient_code,
    query_stride,
    dout_stride,
    key_stride,
    key_step,
    value_stride,
    value_step,
    dk_stride,
    dk_step,
    dv_stride,
    dv_step,
    scale,
    finite_queries,
    first_column,
    last_column,
):
    """dk and dv of some tile columns of one key head, and their share of dq.

    `heads` has, for every query head of the group, the number of its structure and the addresses of
    its q, dout, statistics and buffer of dq; `group` the addresses of k, v, dk and dv. A buffer has
    rows of `width` elements, TILE for every tile row that has a place in `slots`. q and dout are of
    compute type with elements side by side, readable up to a multiple of ROWS.
    """
    layout = _make_layout(scratch, lists, depth, value_depth, width)
    size, panel = layout.size, layout.panel
    kind = scratch.dtype.type
    strides = (query_stride, dout_stride, width * size, 2 * size)
    broken = lists[TILE // panel * LIST_WORDS :]
    fill(scratch, layout.ones, (layout.spare - layout.ones) // size, kind(1.0))
    fill(scratch, layout.spare, width, kind(0.0))
    for column in range(first_column, last_column):
        first_key = column * TILE
        keys = n_k - first_key if n_k - first_key < TILE else TILE
        parts = (keys + panel - 1) // panel
        for part in range(parts):
            first = first_key + part * panel
            key, value = group[0] + first * key_stride, group[1] + first * value_stride
            count = keys - part * panel if keys - part * panel < panel else panel
            broken[part] = _begin(
                scratch, layout, part, code, key, key_stride, key_step, value, value_stride, value_step, count
            )
        fill(scratch, layout.key_gradients, TILE * layout.depth_padded, kind(0.0))
        fill(scratch, layout.value_gradients, TILE * layout.value_padded, kind(0.0))

        for head in range(len(heads)):
            structure = heads[head, 0]
            first_tile = read_int64(structures[structure, 4], column)
            last_tile = read_int64(structures[structure, 4], column + 1)
            # After the last tile of the last head comes one more step: it works off what is left.
            steps = last_tile + 1 if head == len(heads) - 1 else last_tile
            for tile in range(first_tile, steps):
                row, mask = np.int64(0), np.int64(-1)
                if tile < last_tile:
                    row = read_int32(structures[structure, 5], tile)
                    mask = read_int32(structures[structure, 6], tile)
                bases = (
                    heads[head, 1] + row * TILE * query_stride,
                    heads[head, 2] + row * TILE * dout_stride,
                    heads[head, 4] + slots[row] * TILE * width * size if mask >= 0 else 0,
                    heads[head, 3] + row * TILE * 2 * size,
                )
                masks = structures[structure, 3] + mask * TILE * MASK_ROW
                for part in range(parts):
                    entries = layout.lists + part * (8 * LIST_WORDS)
                    count = TILE
                    if mask > FULL:
                        count = count_seen_rows(scratch, masks, part * panel)
                    if list_length(entries) + count > CAPACITY or mask < 0:
                        _work_off(scratch, layout, part, kind(scale), finite_queries, broken[part])
                    if mask == FULL:
                        append_all(entries, bases, strides)
                    elif mask > FULL:
                        append_seen_rows(scratch, entries, masks, part * panel, bases, strides)

        for part in range(parts):
            first = first_key + part * panel
            count = keys - part * panel if keys - part * panel < panel else panel
            dk, dv = group[2] + first * dk_stride, group[3] + first * dv_stride
            gradients = layout.key_gradients + part * layout.depth_padded * layout.row_bytes
            _end(
                scratch,
                layout,
                gradients,
                depth,
                layout.depth_padded,
                gradient_code,
                dk,
                dk_stride,
                dk_step,
                count,
            )
            gradients = layout.value_gradients + part * layout.value_padded * layout.row_bytes
            _end(
                scratch,
                layout,
                gradients,
                value_depth,
                layout.value_padded,
                gradient_code,
                dv,
                dv_stride,
                dv_step,
                count,
            )
