"""Tiles: what the tile engines eat.

A pattern is cut into square tiles of ``TILE`` x ``TILE`` pairs. A tile without any pair is not
listed; every other tile is listed with the id of its *mask* in a pool of unique bit masks. Mask 0 is
the all-ones mask: a tile with mask 0 is *full*, and an engine may skip looking at its bits. Every
other tile is *partial*. Bits beyond the matrix are zero, so tiles that stick out of it are partial
and need no bounds check of their own.

The handbook page ``formats/tiles.md`` draws the byte layout and the lane order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["FULL", "TILE", "WORDS", "Tiles", "lane_words"]

#: Side of a tile, in queries and in keys.
TILE = 128
#: 64-bit words in one row of a mask.
WORDS = TILE // 64
#: Id of the all-ones mask.
FULL = 0


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tile lists of one pattern, by tile row and by tile column, over one pool of masks.

    Attributes
    ----------
    shape : (n_q, n_k)
    indptr : int64 [tile rows + 1]
    columns : int32 [tiles]
        Tile columns of each tile row, ascending.
    mask_ids : int32 [tiles]
        Which mask of the pool the tile has; ``FULL`` (0) is a full tile.
    transposed_indptr : int64 [tile columns + 1]
    transposed_rows : int32 [tiles]
        Tile rows of each tile column, ascending.
    transposed_mask_ids : int32 [tiles]
        The same ids: the mask itself is *not* transposed.
    pool : uint64 [unique masks, TILE, WORDS]
        Bit ``c % 64`` of ``pool[m, r, c // 64]`` says whether row r of the tile sees column c.
    nnz : int
        Number of pairs.
    shared : dict
        What has been made of the pool; tiles with one pool may have one in common.
    """

    shape: tuple[int, int]
    indptr: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int32]
    mask_ids: npt.NDArray[np.int32]
    transposed_indptr: npt.NDArray[np.int64]
    transposed_rows: npt.NDArray[np.int32]
    transposed_mask_ids: npt.NDArray[np.int32]
    pool: npt.NDArray[np.uint64]
    nnz: int
    shared: dict[str, npt.NDArray[np.uint64]] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        """Number of listed tiles."""
        return int(self.columns.size)

    @cached_property
    def full_count(self) -> int:
        """Number of full tiles."""
        return int(np.count_nonzero(self.mask_ids == FULL))

    @property
    def partial_count(self) -> int:
        """Number of partial tiles."""
        return self.count - self.full_count

    @property
    def fill(self) -> float:
        """Share of the pairs inside listed tiles that are selected (1.0 for no tiles)."""
        return self.nnz / (self.count * TILE * TILE) if self.count else 1.0

    @property
    def nbytes(self) -> int:
        """Memory of the lists and the pool."""
        arrays = (
            self.indptr,
            self.columns,
            self.mask_ids,
            self.transposed_indptr,
            self.transposed_rows,
            self.transposed_mask_ids,
            self.pool,
        )
        return sum(array.nbytes for array in arrays)

    @property
    def lanes(self) -> npt.NDArray[np.uint64]:
        """The pool in lane order, ``uint64 [unique, 2, 128]``: see :func:`lane_words`."""
        if "lanes" not in self.shared:
            self.shared["lanes"] = lane_words(self.pool)
        return self.shared["lanes"]

    @property
    def transposed_lanes(self) -> npt.NDArray[np.uint64]:
        """Lane order of the transposed masks: rows are keys, columns are queries."""
        if "transposed lanes" not in self.shared:
            self.shared["transposed lanes"] = lane_words(_transpose_masks(self.pool))
        return self.shared["transposed lanes"]


def _bits(pool: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """``uint8 [unique, TILE, TILE]``: one byte a bit, row-major."""
    little = np.ascontiguousarray(pool.astype("<u8", copy=False))
    return np.unpackbits(little.view(np.uint8).reshape(len(pool), TILE, TILE // 8), axis=2, bitorder="little")


def _pack(bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Inverse of :func:`_bits` over the last axis, whose length is a multiple of 64."""
    packed = np.packbits(bits, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u8").astype(np.uint64, copy=False)


def _transpose_masks(pool: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return _pack(np.ascontiguousarray(_bits(pool).transpose(0, 2, 1)))


def lane_words(pool: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Masks in lane order: one 64-bit word per thread and half tile.

    A tile is two half tiles of 64 rows x 128 columns; each is the accumulator of one warpgroup of
    128 threads (four warps of 32 lanes). Thread ``t = 32 * warp + lane`` holds 64 elements; element
    ``e`` of it lies at

        row    = 64 * half + 16 * warp + lane // 4 + 8 * ((e // 2) % 2)
        column = 8 * (e // 4) + 2 * (lane % 4) + e % 2

    and bit ``e`` of ``result[mask, half, t]`` is that pair's bit. This is the accumulator layout of
    ``wgmma.m64n128`` and, warp by warp, of a row of sixteen ``mma.m16n8`` tiles.

    Parameters
    ----------
    pool : uint64 [unique, TILE, WORDS]

    Returns
    -------
    uint64 [unique, 2, 128]

    Examples
    --------
    >>> import numpy as np
    >>> pool = np.zeros((1, 128, 2), np.uint64)
    >>> pool[0, 8, 0] = 1 << 9                     # row 8, column 9
    >>> words = lane_words(pool)
    >>> [int(axis[0]) for axis in np.nonzero(words)]  # mask 0, half 0, thread 0 (lane 0) ...
    [0, 0, 0]
    >>> int(words[0, 0, 0]) == 1 << 7              # ... element 7: second row, second group of 8
    True
    """
    element = np.arange(64)
    thread = np.arange(TILE)
    warp, lane = thread // 32, thread % 32
    half = np.arange(2)
    row = 64 * half[:, None, None] + (16 * warp + lane // 4)[:, None] + 8 * ((element // 2) % 2)
    column = np.broadcast_to((2 * (lane % 4))[:, None] + 8 * (element // 4) + element % 2, row.shape)
    return _pack(_bits(pool)[:, row, column])[..., 0]
