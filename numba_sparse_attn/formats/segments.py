"""Segments: a pattern at tile resolution, run-length coded; where patterns are combined.

A tile row is a sorted list of disjoint runs of tile columns that share one mask (often the full
mask), so ``causal`` at any length is two runs a tile row. Pieces and CSR rows are turned into
segments, set operations act on segments mask by mask, and everything else about a pattern (tiles,
CSR, nnz) is read off them. Cost follows tiles and unique masks, never pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import segment_kernels as kernels
from .census import count_blocks
from .csr import Csr
from .pieces import PieceArray
from .pool import MaskPool
from .tiles import FULL, TILE, WORDS, Tiles

__all__ = [
    "OPERATIONS",
    "Segments",
    "combine",
    "joined",
    "moved_segments",
    "segments_from_pieces",
    "segments_from_rows",
    "segments_from_tiles",
]

#: Truth tables of the set operations: bit ``2 * a + b`` of the number is the result for bits a, b.
OPERATIONS = {"or": 0b1110, "and": 0b1000, "sub": 0b0100, "xor": 0b0110}

#: Masks whose bits are counted at a time: bounds the temporary array to a megabyte.
_POPULATION_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Segments:
    """Runs of equal tiles for the tile rows ``first_row_tile .. + len(indptr) - 1``.

    Attributes
    ----------
    shape : (n_q, n_k)
    first_row_tile : int
        Tile row of ``indptr[0]``: segments may cover a part of a pattern.
    indptr : int64 [tile rows + 1]
    runs : int32 [runs, 3]
        (first tile column, end tile column, mask id); disjoint and ascending in a tile row.
    pool : MaskPool
    pairs : int or None
        Number of pairs, where it was known before anything was drawn.
    """

    shape: tuple[int, int]
    first_row_tile: int
    indptr: npt.NDArray[np.int64]
    runs: npt.NDArray[np.int32]
    pool: MaskPool
    pairs: int | None = None

    def mask_counts(self) -> npt.NDArray[np.int64]:
        """How many tiles have each mask of the pool."""
        lengths = self.runs[:, 1].astype(np.int64) - self.runs[:, 0]
        return np.bincount(self.runs[:, 2], weights=lengths, minlength=self.pool.count).astype(np.int64)

    @property
    def nnz(self) -> int:
        """Number of pairs."""
        if self.pairs is not None:
            return self.pairs
        counts = self.mask_counts()
        masks = self.pool.masks[: self.pool.count]
        total = 0
        for begin in range(0, len(masks), _POPULATION_CHUNK):
            chunk = slice(begin, begin + _POPULATION_CHUNK)
            bits = np.bitwise_count(masks[chunk]).sum(axis=1, dtype=np.int32)
            total += int(np.dot(bits.astype(np.int64), counts[chunk]))
        return total

    def to_tiles(self) -> Tiles:
        """The engines' lists, with a pool that holds just the masks in use."""
        if self.first_row_tile or len(self.indptr) != tile_count(self.shape[0]) + 1:
            raise AssertionError("tiles need all tile rows")
        column_tiles = tile_count(self.shape[1])
        used = self.mask_counts() > 0
        used[FULL] = True
        renumber = np.cumsum(used, dtype=np.int32) - np.int32(1)
        total = int((self.runs[:, 1].astype(np.int64) - self.runs[:, 0]).sum())
        tiles = Tiles(
            shape=self.shape,
            indptr=np.empty(len(self.indptr), np.int64),
            columns=np.empty(total, np.int32),
            mask_ids=np.empty(total, np.int32),
            transposed_indptr=np.zeros(column_tiles + 1, np.int64),
            transposed_rows=np.empty(total, np.int32),
            transposed_mask_ids=np.empty(total, np.int32),
            pool=self._used_masks(used),
            nnz=self.nnz,
        )
        kernels.expand(
            self.indptr,
            self.runs,
            renumber,
            tiles.indptr,
            tiles.columns,
            tiles.mask_ids,
            tiles.transposed_indptr,
            tiles.transposed_rows,
            tiles.transposed_mask_ids,
        )
        for array in vars(tiles).values():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        return tiles

    def _used_masks(self, used: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
        """The masks that tiles refer to; not copied where that is nearly all of a large pool."""
        stored = self.pool.stored()
        return stored if used.all() and 2 * len(stored) > len(self.pool.masks) else stored[used]

    def to_csr(self) -> Csr:
        """The pairs of the rows that these segments cover (row 0 is the first covered row)."""
        first_row = self.first_row_tile * TILE
        rows = max(0, min((len(self.indptr) - 1) * TILE, self.shape[0] - first_row))
        indptr = np.zeros(rows + 1, np.int64)
        masks = self.pool.masks
        kernels.count_row_pairs(self.indptr, self.runs, masks, indptr)
        indices = np.empty(int(indptr[-1]), np.int32 if self.shape[1] <= 2**31 - 1 else np.int64)
        kernels.fill_row_pairs(self.indptr, self.runs, masks, indptr, indices)
        indptr.flags.writeable = False
        indices.flags.writeable = False
        return Csr((rows, self.shape[1]), indptr, indices)


def tile_count(length: int) -> int:
    """Tiles that cover `length` rows or columns."""
    return -(-length // TILE)


class _Runs:
    """Growable output of a kernel that works tile row by tile row and can be resumed."""

    def __init__(self, row_tiles: int, capacity: int) -> None:
        self.indptr = np.zeros(row_tiles + 1, np.int64)
        self.runs = np.empty((max(capacity, 64), 3), np.int32)

    def complete(self, pool: MaskPool, row_tiles: int, step: Callable[[int], tuple[int, int, int]]) -> None:
        """Call ``step(first tile row)`` until all are done.

        It returns (tile rows done, further runs needed, further masks needed).
        """
        done = 0
        while done < row_tiles:
            done, runs_needed, masks_needed = step(done)
            if done == row_tiles:
                break
            pool.reserve(masks_needed)
            needed = int(self.indptr[done]) + runs_needed
            if needed > len(self.runs):
                grown = np.empty((max(needed, 2 * len(self.runs)), 3), np.int32)
                grown[: self.indptr[done]] = self.runs[: self.indptr[done]]
                self.runs = grown

    def finish(
        self, shape: tuple[int, int], first_row_tile: int, pool: MaskPool, pairs: int | None = None
    ) -> Segments:
        return Segments(shape, first_row_tile, self.indptr, self.runs[: self.indptr[-1]], pool, pairs)


def segments_from_pieces(
    pieces: PieceArray, shape: tuple[int, int], pool: MaskPool, first_row_tile: int, end_row_tile: int
) -> Segments:
    """Draw the union of `pieces` for a range of tile rows."""
    row_tiles, column_tiles = end_row_tile - first_row_tile, tile_count(shape[1])
    clipped = pieces.copy()
    clipped[:, 0:2] = clipped[:, 0:2].clip(0, shape[0])
    clipped[:, 2:4] = clipped[:, 2:4].clip(0, shape[1])
    clipped[:, 4] = clipped[:, 4].clip(-shape[0], None)
    clipped[:, 5] = clipped[:, 5].clip(None, shape[1])
    reach = (
        (clipped[:, 0] < np.minimum(clipped[:, 1], end_row_tile * TILE))
        & (clipped[:, 1] > first_row_tile * TILE)
        & (clipped[:, 2] < clipped[:, 3])
        & (clipped[:, 4] <= clipped[:, 5])
    )
    clipped = clipped[reach]
    clipped = np.ascontiguousarray(clipped[np.argsort(clipped[:, 0], kind="stable")])
    output = _Runs(row_tiles, 4 * row_tiles)
    heads = np.full(column_tiles, -1, np.int32)
    covered = np.zeros(column_tiles, np.uint8)
    active = np.empty(len(clipped), np.int64)
    mask = np.zeros(TILE * WORDS, np.uint64)
    entry_words, entry_next = np.empty(1024, np.uint64), np.empty(1024, np.int32)

    def step(done: int) -> tuple[int, int, int]:
        nonlocal entry_words, entry_next
        done, runs_needed, masks_needed, entries_needed = kernels.draw_pieces(
            clipped,
            first_row_tile,
            done,
            row_tiles,
            heads,
            covered,
            active,
            entry_words,
            entry_next,
            mask,
            pool.arrays,
            output.indptr,
            output.runs,
        )
        if entries_needed:
            entry_words, entry_next = (
                np.empty(2 * entries_needed, np.uint64),
                np.empty(2 * entries_needed, np.int32),
            )
        return done, runs_needed, masks_needed

    output.complete(pool, row_tiles, step)
    return output.finish(shape, first_row_tile, pool)


def segments_from_rows(
    indptr: npt.NDArray[np.int64],
    indices: npt.NDArray[Any],
    shape: tuple[int, int],
    pool: MaskPool,
    first_row_tile: int,
    end_row_tile: int,
) -> Segments:
    """Draw CSR rows; ``indptr[0]`` belongs to the first row of `first_row_tile`."""
    row_tiles, column_tiles = end_row_tile - first_row_tile, tile_count(shape[1])
    output = _Runs(row_tiles, 4 * row_tiles)
    # One mask a tile is the worst case; memory that no mask is written to is never really allocated,
    # while growing a large pool step by step would copy it again and again.
    pool.reserve(count_blocks(indptr - indptr[0], indices[indptr[0] : indptr[-1]], shape[1], TILE, TILE))
    slots = np.full(column_tiles, -1, np.int32)
    touched = np.empty(column_tiles, np.int32)
    widest = int(np.diff(indptr[::TILE], append=indptr[-1]).max(initial=0))
    scratch = np.zeros((min(column_tiles, widest), TILE * 2), np.uint64)

    def step(done: int) -> tuple[int, int, int]:
        return kernels.draw_rows(
            indptr, indices, done, row_tiles, slots, touched, scratch, pool.arrays, output.indptr, output.runs
        )

    output.complete(pool, row_tiles, step)
    return output.finish(shape, first_row_tile, pool, int(indptr[-1] - indptr[0]))


def joined(
    shape: tuple[int, int], pool: MaskPool, first_row_tile: int, parts: Sequence[Segments]
) -> Segments:
    """Consecutive tile rows that were drawn one after the other over one pool."""
    counts = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.indptr) for part in parts)])
    runs = np.concatenate([np.empty((0, 3), np.int32), *(part.runs for part in parts)])
    return Segments(shape, first_row_tile, np.cumsum(counts), runs, pool)


def segments_from_tiles(
    draw: Callable[[int, npt.NDArray[np.uint64]], None],
    shape: tuple[int, int],
    pool: MaskPool,
    first_row_tile: int,
    end_row_tile: int,
    *,
    proceed: Callable[[int], bool] = lambda done: True,
) -> Segments | None:
    """Segments of masks that ``draw(tile row, masks [column tiles, TILE * WORDS])`` sets, row by row.

    None if ``proceed(tile rows done)`` says after one of them that the rest is not worth drawing.
    """
    row_tiles, column_tiles = end_row_tile - first_row_tile, tile_count(shape[1])
    output = _Runs(row_tiles, 4 * row_tiles)
    masks = np.empty((column_tiles, TILE * WORDS), np.uint64)
    worthwhile = True

    def step(done: int) -> tuple[int, int, int]:
        nonlocal worthwhile
        if output.indptr[done] + column_tiles > len(output.runs):
            return done, column_tiles, column_tiles
        if pool.count + column_tiles > len(pool.masks):
            return done, 0, column_tiles
        masks.fill(0)
        draw(first_row_tile + done, masks)
        kernels.draw_tiles(masks, done, pool.arrays, output.indptr, output.runs)
        worthwhile = proceed(done + 1)
        return done + 1 if worthwhile else row_tiles, 0, 0

    output.complete(pool, row_tiles, step)
    if not worthwhile:
        return None
    return output.finish(shape, first_row_tile, pool)


def moved_segments(source: Segments, pool: MaskPool, first_row_tile: int, end_row_tile: int) -> Segments:
    """Some tile rows of segments that cover all of them, with their masks in another pool."""
    pool.reserve(source.pool.count)
    numbers = np.empty(source.pool.count, np.int64)
    kernels.move_masks(source.pool.masks, source.pool.count, pool.arrays, numbers)
    indptr = source.indptr[first_row_tile : end_row_tile + 1]
    runs = source.runs[indptr[0] : indptr[-1]].copy()
    runs[:, 2] = numbers[runs[:, 2]]
    return Segments(source.shape, first_row_tile, indptr - indptr[0], runs, pool)


def combine(operation: str, left: Segments, right: Segments) -> Segments:
    """A set operation on two patterns that share a shape, a range of tile rows and a pool."""
    if left.pool is not right.pool or left.shape != right.shape or len(left.indptr) != len(right.indptr):
        raise AssertionError("operands must be drawn over the same pool and tile rows")
    pool, row_tiles = left.pool, len(left.indptr) - 1
    output = _Runs(row_tiles, 2 * (len(left.runs) + len(right.runs)))
    memo = np.full((1 << 14, 3), -2, np.int64)

    def step(done: int) -> tuple[int, int, int]:
        return kernels.combine_rows(
            OPERATIONS[operation],
            left.indptr,
            left.runs,
            right.indptr,
            right.runs,
            done,
            memo,
            pool.arrays,
            output.indptr,
            output.runs,
        )

    output.complete(pool, row_tiles, step)
    return output.finish(left.shape, left.first_row_tile, pool)
