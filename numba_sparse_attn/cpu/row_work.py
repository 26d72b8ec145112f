"""What both passes of the row path share: joined rows, tables of heads, and the walk through the lists.

Query heads that share a key head are worked on together, row by row, so that the rows of K and V that
one of them brings into the caches serve the others. Key heads follow each other in waves, each with
its own joined copy of K and V, so the copies for a long sequence never exist all at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.csr import Csr
from ..formats.work import Request
from ..jit import for_each, inlined, kernel
from .elements import head_addresses, load_row, type_code
from .gather import GROUP, list_rows
from .lists import read_int64
from .operands import aligned_empty, shares
from .vector import address_of, fill, lane_count, vector_bytes

__all__ = [
    "BATCH",
    "BEGIN",
    "BLOCK",
    "HEAD",
    "INDEX_BYTES",
    "INDICES",
    "INDPTR",
    "IS_FIRST",
    "IS_LAST",
    "LISTED",
    "LIST_COLUMNS",
    "LOG2_E",
    "NEXT_HEAD",
    "NEXT_ROW",
    "PLACE",
    "ROW",
    "SIZE",
    "SLOT",
    "JoinedRows",
    "Wave",
    "Workspace",
    "finite",
    "join",
    "joined_bytes",
    "list_columns",
    "list_pieces",
    "padded",
    "unit_costs",
    "walk",
    "waves",
]

LOG2_E = 1.4426950408889634

#: Rows in one unit of work.
BLOCK = 64

#: A longer list is worked off in pieces of this many entries, wherever they fall: results must not
#: depend on what is worked on together.
_PIECE = 512

#: Pieces, and entries of pieces, that are worked off together: first the scores of all of them, then
#: the probabilities, then the sums. The latency of one piece hides behind the others, which takes a
#: tenth off the time of a window of 33 keys and a seventh off that of 64 random keys a row.
BATCH = 8
_CAPACITY = 1024

#: Room for the entries of a batch, every piece filled up to whole vectors and groups.
LISTED = _CAPACITY + BATCH * 16

#: Cost of a row next to that of one of its pairs.
_ROW_COST = 16

#: Bytes of joined rows that a wave holds, unless one key head alone needs more.
_WAVE_BYTES = 8 << 20

#: Rows that are read this often on average are worth a copy whose vectors straddle no cache lines: with
#: 64 reads a row that takes a fifth off the time, copying included.
_READS_WORTH_ALIGNING = 16

#: Columns of a table of heads that :func:`list_columns` fills: addresses of indptr and indices, bytes
#: of an index.
INDPTR, INDICES, INDEX_BYTES = range(3)
LIST_COLUMNS = 3

#: Columns of a table of pieces: row and head whose list it is, first entry in the indices, number of
#: entries, place of the first one among the entries of the batch, place for what is summed up over the
#: list, whether the list begins and whether it ends with this piece.
ROW, HEAD, BEGIN, SIZE, PLACE, SLOT, IS_FIRST, IS_LAST = range(8)
_PIECE_COLUMNS = 8

#: What the walk through the lists remembers: row, head and entry that come next, lists finished.
NEXT_ROW, NEXT_HEAD, _POSITION, _FINISHED = range(4)
_CURSOR_PLACES = 4


@inlined
def finite(value, like):
    """`value` in the type of an array, or the largest one of that type: 0 times infinity would be NaN."""
    limit = 3.0e38 if like.itemsize == 4 else 1.7e308
    if value > limit:
        value = limit
    if value < -limit:
        value = -limit
    return like.dtype.type(value)


def walk() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cursor, pieces and lists for :func:`list_pieces`."""
    pieces = np.zeros((BATCH, _PIECE_COLUMNS), np.int64)
    return np.zeros(_CURSOR_PLACES, np.int64), pieces, np.zeros(LISTED + GROUP, np.int64)


@inlined
def list_pieces(heads, column, base, stride, first_head, last_head, last_row, lanes, cursor, pieces, lists):
    """Fill `pieces` with the next batch and `lists` with the addresses it names; returns the pieces.

    The walk goes through rows and, in each row, through the heads ``first_head, ..., last_head - 1``.
    The lists are those in `column` of the table of heads; rows named by them lie `stride` bytes apart
    from the address in column `base` on. No two pieces of a batch are of one list.
    """
    count = 0
    listed = 0
    place = 0
    unit = lanes if lanes > GROUP else GROUP
    while count < BATCH and cursor[NEXT_ROW] < last_row:
        row = cursor[NEXT_ROW]
        head = cursor[NEXT_HEAD]
        position = cursor[_POSITION]
        begin = read_int64(heads[head, column], row) + position
        left = read_int64(heads[head, column], row + 1) - begin
        size = left if left < _PIECE else _PIECE
        if count > 0 and listed + size > _CAPACITY:
            break
        pieces[count, ROW] = row
        pieces[count, HEAD] = head
        pieces[count, BEGIN] = begin
        pieces[count, SIZE] = size
        pieces[count, PLACE] = place
        pieces[count, SLOT] = cursor[_FINISHED] % BATCH
        pieces[count, IS_FIRST] = position == 0
        pieces[count, IS_LAST] = size == left
        if size > 0:
            indices = heads[head, column + INDICES]
            width = heads[head, column + INDEX_BYTES]
            target = address_of(lists) + 8 * place
            list_rows(indices, width, begin, size, heads[head, base], stride, target)
        count += 1
        listed += size
        place += (size + unit - 1) // unit * unit
        if size < left:
            cursor[_POSITION] = position + size
            break
        cursor[_POSITION] = 0
        cursor[_FINISHED] += 1
        if head + 1 < last_head:
            cursor[NEXT_HEAD] = head + 1
        else:
            cursor[NEXT_HEAD] = first_head
            cursor[NEXT_ROW] = row + 1
    return count


@dataclass(frozen=True)
class Wave:
    """Some key heads, and the selected query heads that share them.

    Attributes
    ----------
    key_heads : int64 [key heads]
        Flat numbers ``b * kv_heads + h``, ascending.
    heads : int64 [heads]
        Flat numbers ``b * heads + h``, ascending.
    places : slice
        Where these heads stand among all that are selected.
    ends : int64 [key heads + 1]
        ``heads[ends[i] : ends[i + 1]]`` share key head i.
    lists : list of Csr
        The structure of every head.
    """

    key_heads: npt.NDArray[np.int64]
    heads: npt.NDArray[np.int64]
    places: slice
    ends: npt.NDArray[np.int64]
    lists: list[Csr]

    @property
    def owners(self) -> npt.NDArray[np.int64]:
        """For every head, the place of its key head in ``key_heads``."""
        return np.repeat(np.arange(self.key_heads.size), self.ends[1:] - self.ends[:-1])

    @property
    def pairs(self) -> int:
        """Entries of all lists."""
        return sum(csr.nnz for csr in self.lists)


def waves(
    request: Request,
    selected: npt.NDArray[np.int64],
    bytes_per_key_head: int,
    bytes_per_head: int,
    every_key_head: bool = False,
) -> Iterator[Wave]:
    """Cut the selected heads (ascending) and the key heads that they share, or all, into waves."""
    shared = selected // request.group
    key_heads = np.arange(request.batch * request.kv_heads) if every_key_head else np.unique(shared)
    if key_heads.size == 0:
        return
    ends = np.append(np.searchsorted(shared, key_heads), selected.size)
    costs = bytes_per_key_head + bytes_per_head * (ends[1:] - ends[:-1])
    number = (np.cumsum(costs) - costs) // _WAVE_BYTES
    cuts = [0, *(np.flatnonzero(number[1:] != number[:-1]) + 1).tolist(), key_heads.size]
    which = request.which.reshape(-1)
    for first, last in pairwise(cuts):
        places = slice(int(ends[first]), int(ends[last]))
        lists = [request.structures[index] for index in which[selected[places]].tolist()]
        yield Wave(
            key_heads[first:last],
            selected[places],
            places,
            ends[first : last + 1] - ends[first],
            [csr for csr in lists if isinstance(csr, Csr)],
        )


def unit_costs(wave: Wave, lists: list[Csr], rows: int) -> npt.NDArray[np.int64]:
    """Cost, in pairs, of every BLOCK of the rows of every key head, where each head has its own lists."""
    ends = np.minimum(np.arange(0, rows + BLOCK, BLOCK), rows)
    known = {}
    for csr in lists:
        if id(csr) not in known:
            reached = csr.indptr[ends] + _ROW_COST * ends
            known[id(csr)] = reached[1:] - reached[:-1]
    costs = np.ones((wave.key_heads.size, ends.size - 1), np.int64)
    for owner, csr in zip(wave.owners.tolist(), lists, strict=True):
        costs[owner] += known[id(csr)]
    return costs.reshape(-1)


def list_columns(lists: list[Csr]) -> npt.NDArray[np.int64]:
    """The LIST_COLUMNS of a table of heads with these lists, which have to outlive it."""
    known = {id(csr): (_address(csr.indptr), _address(csr.indices), csr.indices.itemsize) for csr in lists}
    rows = [known[id(csr)] for csr in lists]
    return np.array(rows, np.int64).reshape(len(lists), LIST_COLUMNS)


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def joined_bytes(sizes: tuple[int, int], rows: int, accumulator: np.dtype[Any]) -> int:
    """Memory for a joined copy of `rows` rows of two sizes."""
    return 2 * rows * padded(max(sizes), accumulator) * accumulator.itemsize


def padded(size: int, accumulator: np.dtype[Any]) -> int:
    """`size` filled up to whole vectors of the accumulator type."""
    lanes = lane_count(accumulator)
    return -(-size // lanes) * lanes


class Workspace:
    """Memory for the joined rows of a wave, used again for the next one."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._memory = np.empty(0, dtype)

    def take(self, size: int) -> npt.NDArray[Any]:
        """The first `size` elements, with anything in them."""
        if size > self._memory.size:
            self._memory = aligned_empty(size, self._dtype)
        return self._memory[:size]


@dataclass(frozen=True)
class JoinedRows:
    """Rows of two matrices per head, in compute type and filled up with zeros to whole vectors.

    Attributes
    ----------
    addresses : int64 [heads]
        First row of the left matrix of every head.
    stride : int
        Bytes from row to row.
    offset : int
        Bytes from a row of the left matrix to that of the right one.
    """

    addresses: npt.NDArray[np.int64]
    stride: int
    offset: int


def join(
    left: npt.NDArray[Any],
    right: npt.NDArray[Any],
    chosen: npt.NDArray[np.int64],
    reads: int,
    workspace: Workspace,
    accumulator: np.dtype[Any],
) -> JoinedRows:
    """Rows of the chosen heads of two arrays (..., heads, n, d), so that one address names two rows.

    They are used in place where they can be read as they are, and where `reads` of them are so few
    that aligning them is not worth a copy.
    """
    addresses = np.stack([head_addresses(array).reshape(-1)[chosen] for array in (left, right)], axis=1)
    rows = left.shape[-2]
    stride, offsets = left.strides[-2], addresses[:, 1] - addresses[:, 0]
    ready = (
        all(_is_readable(array, accumulator) for array in (left, right))
        and right.strides[-2] == stride
        and abs(stride) < 2**31
        and (offsets == offsets[:1]).all()
    )
    if ready and chosen.size:
        aligned = stride % vector_bytes() == 0 and not (addresses % vector_bytes()).any()
        if aligned or reads < _READS_WORTH_ALIGNING * rows * chosen.size:
            return JoinedRows(addresses[:, 0].copy(), stride, int(offsets[0]))
    widths = padded(left.shape[-1], accumulator), padded(right.shape[-1], accumulator)
    target = workspace.take(chosen.size * rows * 2 * max(widths))

    def copy(share: tuple[int, int], worker: int) -> None:
        _join_kernel(
            target,
            addresses,
            rows,
            max(widths),
            type_code(left.dtype),
            (left.strides[-2:], right.strides[-2:]),
            (left.shape[-1], right.shape[-1]),
            widths,
            *share,
        )

    units = np.ones(chosen.size * -(-rows // BLOCK), np.int64)
    for_each(copy, shares(units, 4 * target.size))
    stride = max(widths) * accumulator.itemsize
    starts = _address(target) + 2 * rows * stride * np.arange(chosen.size, dtype=np.int64)
    return JoinedRows(starts, stride, rows * stride)


def _is_readable(array: npt.NDArray[Any], accumulator: np.dtype[Any]) -> bool:
    """Whether rows are what the gathering intrinsics take, but for their alignment."""
    side_by_side = array.shape[-1] == 1 or array.strides[-1] == array.itemsize
    return bool(
        array.dtype == accumulator and side_by_side and array.shape[-1] % lane_count(accumulator) == 0
    )


@kernel
def _join_kernel(target, addresses, rows, stride, code, strides, sizes, widths, first_unit, last_unit):
    """Copy units of BLOCK rows, counted through all heads.

    For every head all left rows come first, then all right ones, `stride` elements apart. Row by row
    side by side, they would share the sets of a cache: a window of left rows alone would have half of it.
    """
    base = address_of(target)
    blocks = (rows + BLOCK - 1) // BLOCK
    for unit in range(first_unit, last_unit):
        head = unit // blocks
        first = (unit - head * blocks) * BLOCK
        for side in range(2):
            size = sizes[side]
            for row in range(first, first + BLOCK if first + BLOCK < rows else rows):
                place = ((2 * head + side) * rows + row) * stride
                source = addresses[head, side] + row * strides[side][0]
                load_row(code, source, strides[side][1], size, target, place)
                end = base + (place + size) * target.itemsize
                fill(target, end, widths[side] - size, target.dtype.type(0.0))
