"""Tile lists of patterns that consist of whole blocks, for all heads at once, without drawing a mask a tile.

Where blocks are multiples of tiles, a tile is full unless it stands at the edge of the matrix or on the
diagonal where a causal call ends: there are a dozen ways to be cut, one mask each, whatever the length.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..jit import kernel
from .tiles import FULL, TILE, WORDS, Tiles

__all__ = ["fits_tiles", "tiles_of_blocks"]

#: Ways of a tile to be cut: by no diagonal or one of two, in the last row of tiles or not, or column.
_WAYS = 12


def fits_tiles(block: int, query_block: int) -> bool:
    """Whether :func:`tiles_of_blocks` takes blocks of these sizes."""
    return block % TILE == 0 and query_block % TILE == 0


def tiles_of_blocks(
    chosen: npt.NDArray[np.int32],
    shape: tuple[int, int],
    *,
    block: int,
    query_block: int,
    causal: bool,
) -> list[Tiles]:
    """Tiles of every head.

    Parameters
    ----------
    chosen : int32 [heads, blocks of queries, width]
        Numbers of the blocks of keys that every block of queries sees, ascending, padded with -1.
    shape : (n_q, n_k)
    block, query_block : int
        Multiples of ``TILE``.
    causal : bool
        Of these only the pairs j <= i + n_k - n_q.

    Examples
    --------
    >>> import numpy as np
    >>> chosen = np.array([[[0, -1], [0, 1]]], np.int32)
    >>> (tiles,) = tiles_of_blocks(chosen, (256, 256), block=128, query_block=128, causal=True)
    >>> tiles.columns.tolist(), tiles.mask_ids.tolist(), tiles.nnz
    ([0, 0, 1], [1, 0, 1], 32896)
    """
    heads, _, width = chosen.shape
    row_tiles, column_tiles = -(-shape[0] // TILE), -(-shape[1] // TILE)
    room = row_tiles * min(width * (block // TILE), column_tiles)
    indptr = np.zeros((heads, row_tiles + 1), np.int64)
    transposed_indptr = np.zeros((heads, column_tiles + 1), np.int64)
    columns, masks, rows, transposed_masks = (np.empty((heads, room), np.int32) for _ in range(4))
    ways = _ways(shape[0] % TILE, shape[1] % TILE, (shape[1] - shape[0]) % TILE if causal else None)
    uses = np.zeros((heads, len(ways.pool)), np.int64)
    _list_tiles(
        chosen,
        np.array([*shape, block // TILE, query_block // TILE, causal]),
        ways.number,
        indptr,
        columns,
        masks,
        transposed_indptr,
        rows,
        transposed_masks,
        uses,
    )
    pairs = uses @ ways.pairs
    for array in (indptr, columns, masks, transposed_indptr, rows, transposed_masks):
        array.flags.writeable = False
    return [
        Tiles(
            shape=shape,
            indptr=indptr[head],
            columns=columns[head, :count],
            mask_ids=masks[head, :count],
            transposed_indptr=transposed_indptr[head],
            transposed_rows=rows[head, :count],
            transposed_mask_ids=transposed_masks[head, :count],
            pool=ways.pool,
            nnz=int(pairs[head]),
            shared=ways.shared,
        )
        for head, count in enumerate(indptr[:, -1].tolist())
    ]


class _Ways(NamedTuple):
    """The ways in which a tile may be cut.

    Attributes
    ----------
    number : int32 [ways]
        Mask of every way: 4 for the diagonal through what the first row sees of the tile, 8 for that one tile
        further down, plus 2 in the last row of tiles and 1 in the last column. -1 where nothing is left.
    pool : uint64 [masks, TILE, WORDS]
    pairs : int64 [masks]
    shared : dict
        Of all tiles with this pool.
    """

    number: npt.NDArray[np.int32]
    pool: npt.NDArray[np.uint64]
    pairs: npt.NDArray[np.int64]
    shared: dict[str, npt.NDArray[np.uint64]]


@functools.lru_cache(maxsize=256)
def _ways(rows: int, columns: int, ahead: int | None) -> _Ways:
    """For so many rows and columns in the last tiles, 0 if they are whole; in the tile that holds the end of
    what its first row sees, that ends with column `ahead`.
    """
    known = {np.ones((TILE, TILE), np.uint8).tobytes(): FULL}
    number = np.full(_WAYS, -1, np.int32)
    place = np.arange(TILE)
    for way in range(_WAYS):
        cut, at_end = divmod(way, 4)
        if (cut and ahead is None) or (at_end & 2 and not rows) or (at_end & 1 and not columns):
            continue
        bits = np.ones((TILE, TILE), np.uint8)
        if cut and ahead is not None:
            bits = (place - place[:, None] <= ahead - TILE * (cut - 1)).astype(np.uint8)
        if at_end & 2:
            bits[rows:] = 0
        if at_end & 1:
            bits[:, columns:] = 0
        if bits.any():
            number[way] = known.setdefault(bits.tobytes(), len(known))
    every = np.frombuffer(b"".join(known), np.uint8).reshape(-1, TILE, TILE)
    words = np.packbits(every, axis=-1, bitorder="little").view("<u8").astype(np.uint64, copy=False)
    pool = np.ascontiguousarray(words).reshape(-1, TILE, WORDS)
    pool.flags.writeable = False
    return _Ways(number, pool, np.bitwise_count(pool).sum(axis=(1, 2), dtype=np.int64), {})


@kernel
def _list_tiles(
    chosen, sizes, numbers, indptr, columns, masks, transposed_indptr, transposed_rows, transposed_masks, uses
):
    """Lists by row, and by column with a counting sort."""
    n_q, n_k, block_tiles, query_tiles, causal = sizes
    offset = n_k - n_q
    row_tiles, column_tiles = indptr.shape[1] - 1, transposed_indptr.shape[1] - 1
    for head in range(len(chosen)):
        count = 0
        for row in range(row_tiles):
            first_row = row * TILE
            last_row = min(first_row + TILE, n_q) - 1
            low = 2 if first_row + TILE > n_q else 0
            for place in range(chosen.shape[2]):
                number = chosen[head, row // query_tiles, place]
                if number < 0:
                    break
                for column in range(number * block_tiles, min((number + 1) * block_tiles, column_tiles)):
                    first_column = column * TILE
                    way = low
                    if first_column + TILE > n_k:
                        way += 1
                    if causal:
                        if first_column > last_row + offset:
                            break
                        # How far beyond the first column the first row sees.
                        ahead = first_row + offset - first_column
                        if ahead < 0:
                            way += 8
                        elif ahead < TILE - 1:
                            way += 4
                    columns[head, count] = column
                    masks[head, count] = numbers[way]
                    uses[head, numbers[way]] += 1
                    transposed_indptr[head, column + 1] += 1
                    count += 1
            indptr[head, row + 1] = count
        for column in range(column_tiles):
            transposed_indptr[head, column + 1] += transposed_indptr[head, column]
        cursor = transposed_indptr[head, :-1].copy()
        for row in range(row_tiles):
            for position in range(indptr[head, row], indptr[head, row + 1]):
                target = cursor[columns[head, position]]
                cursor[columns[head, position]] = target + 1
                transposed_rows[head, target] = row
                transposed_masks[head, target] = masks[head, position]
