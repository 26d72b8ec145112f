"""Where pairs come from if blocks of queries choose blocks of keys: a table of numbers for every head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.block_tiles import fits_tiles, tiles_of_blocks
from ..formats.pieces import UNBOUNDED, PieceArray, make_pieces
from ..formats.tiles import Tiles
from ._sources import PieceSource

__all__ = ["BlockSource", "BlockTables", "stacked_tables"]


@dataclass(frozen=True, eq=False)
class BlockTables:
    """What the blocks of queries of all heads have chosen.

    Attributes
    ----------
    chosen : int32 [heads, blocks of queries, width]
        Numbers of blocks of keys, ascending, padded with -1.
    shape : (n_q, n_k)
    block, query_block : int
    causal : bool
    """

    chosen: npt.NDArray[np.int32]
    shape: tuple[int, int]
    block: int
    query_block: int
    causal: bool

    def sources(self) -> list[BlockSource]:
        """One a head."""
        return [BlockSource(self, head) for head in range(len(self.chosen))]

    def alone(self, head: int) -> BlockTables:
        """The table of one head."""
        chosen = self.chosen[head : head + 1]
        return BlockTables(chosen, self.shape, self.block, self.query_block, self.causal)

    @cached_property
    def tiles(self) -> list[Tiles] | None:
        """Tiles of all heads, where blocks consist of whole ones."""
        if not fits_tiles(self.block, self.query_block):
            return None
        sizes: dict[str, Any] = {"block": self.block, "query_block": self.query_block}
        return tiles_of_blocks(self.chosen, self.shape, **sizes, causal=self.causal)

    def pieces(self, head: int) -> PieceArray:
        """One a run of neighboring blocks: most choices have some, and pieces are drawn one by one."""
        chosen = self.chosen[head]
        block_row, place = np.nonzero(chosen >= 0)
        number = chosen[block_row, place].astype(np.int64)
        starts = np.ones(len(number), np.bool_)
        starts[1:] = (np.diff(number) != 1) | (np.diff(block_row) != 0)
        first = np.flatnonzero(starts)
        last = np.append(first[1:], len(number))[: len(first)] - 1
        n_q, n_k = self.shape
        begin = block_row[first] * self.query_block
        return make_pieces(
            rows=(begin, np.minimum(begin + self.query_block, n_q)),
            columns=(number[first] * self.block, np.minimum((number[last] + 1) * self.block, n_k)),
            differences=(-UNBOUNDED, n_k - n_q if self.causal else UNBOUNDED),
        )


class BlockSource(PieceSource):
    """Pairs of one head; its pieces are made when they are asked for, and tiles without them."""

    def __init__(self, tables: BlockTables, head: int) -> None:
        self._tables, self._head = tables, head

    def __getstate__(self) -> dict[str, Any]:
        """The own table alone: others keep theirs."""
        return {"_tables": self._tables.alone(self._head), "_head": 0}

    # An attribute of other sources, which are given theirs.
    @cached_property
    def pieces(self) -> PieceArray:  # type: ignore[override]
        return self._tables.pieces(self._head)

    def tiles(self, shape: tuple[int, int]) -> Tiles | None:
        found = self._tables.tiles
        return None if found is None else found[self._head]

    def period(self, shape: tuple[int, int]) -> int:
        return 1  # of thousands of pieces it is not told at a glance, and choices have none


def stacked_tables(tables: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """Tables of heads as one array, padded to the width of the widest."""
    width = max((table.shape[1] for table in tables), default=0)
    rows = len(tables[0]) if len(tables) else 0
    stacked = np.full((len(tables), rows, width), -1, np.int32)
    for all_of_head, table in zip(stacked, tables, strict=True):
        all_of_head[:, : table.shape[1]] = table
    return stacked
