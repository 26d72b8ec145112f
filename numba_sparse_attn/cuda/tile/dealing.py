"""Which block takes which items, and where items that are too long for one block are cut."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...jit import kernel

__all__ = ["LONG_ROW_WORDS", "WORK_BYTES", "assign", "cut", "expected_load"]

_Int64s = npt.NDArray[np.int64]

#: What an item costs beside its tiles, in tiles: filling and emptying the pipeline, writing results. On an
#: H200, head dimension 128, a line through the times of rows of 32 and of 16 tiles says 2.5, and what it says
#: of rows of 5 is 2 % more than was measured.
_ITEM_COST = 2
#: The same for a part of a row, whose sums leave as float32; and what adding parts up costs, a kernel of its
#: own. Assumed, from the bytes that they write and the time that a launch takes, and not fitted.
_PART_COST, _MERGE_COST = 4, 6
#: Shortest part that a row is cut into, in tiles.
_SHORTEST_PART = 4
#: Items a block that are sorted by length at the end: with three, the last block of causal patterns, of
#: documents and of rows with global tokens ends within 2 % of when it does with all sorted.
_LAST_WAVE = 3
#: Share of a block's work from which on an item comes first.
_LONG_SHARE = 0.25
#: So many items are dealt to see how long the last block would take; of more than that, the average says it.
_MOST_DEALT = 4096

#: Longest part of a row that is summed in one go, in tiles, as long as there is memory for parts. Tensor
#: Cores round every sum toward zero: the mean of a million values, as 32,768 sums of 16 one after another,
#: came out 2e-3 of itself too small on an H200, which is 2**-24 a step. A part of this length has 4096.
_LONGEST_PART = 512

#: int64 words a cut row: (place, first slot, parts, address of its list, its tiles, address of masks).
LONG_ROW_WORDS = 6

#: Of an item as kernels read it: (place, tiles | part << 32, address of their list, address of the masks in
#: lane order, and a copy of the first entry of the list, which takes up to 16 bytes); the rest is there so
#: that none crosses a line of memory.
WORK_BYTES = 64


def cut(work: _Int64s, entry_bytes: int, blocks: int) -> tuple[_Int64s, _Int64s]:
    """Work in which no item is long beside a block's fair share, and what has been cut.

    A pattern with global tokens has a few rows as long as the sequence: at 65,536 tokens one took longer than
    all other rows on all other multiprocessors. So does every row of a single head, or of one query. Rows of
    so many tiles that their sums lose digits are cut, too, if there are few of them: parts of rows take no
    more memory than all rows' results do as float32.

    Parameters
    ----------
    work : int64 [items, 5]
        (place, tiles, address of their list, address of masks, number of the first entry of the list).
    entry_bytes : int
        Bytes of a tile in a list.
    blocks : int

    Returns
    -------
    work : int64 [more items, 5]
        Parts have ``tiles | (slot + 1) << 32`` and come behind what is whole.
    long_rows : int64 [cut items, 6]

    Examples
    --------
    >>> import numpy as np
    >>> work, long_rows = cut(np.array([[7, 32, 1000, 0, 0], [8, 4, 2000, 0, 0]]), entry_bytes=8, blocks=3)
    >>> [(place, tiles & 0xFFFFFFFF, tiles >> 32, at) for place, tiles, at, _, _ in work.tolist()]
    [(8, 4, 0, 2000), (7, 10, 1, 1000), (7, 11, 2, 1080), (7, 11, 3, 1168)]
    >>> long_rows.tolist()
    [[7, 0, 3, 1000, 32, 0]]
    """
    lengths = work[:, 1]
    limit = _fair_limit(lengths, blocks)
    exact_limit = min(limit, _LONGEST_PART)
    if int((-(-lengths // exact_limit))[lengths > exact_limit].sum()) <= len(work):
        limit = exact_limit
    is_long = lengths > limit
    if not is_long.any():
        return work, np.empty((0, LONG_ROW_WORDS), np.int64)
    cut_rows = work[is_long]
    counts = -(-cut_rows[:, 1] // limit)
    ends = np.cumsum(counts)
    long_rows = np.stack([cut_rows[:, 0], ends - counts, counts, *cut_rows[:, [2, 1, 3]].T], axis=1)
    slots = np.arange(int(ends[-1]))
    owner = np.repeat(np.arange(len(cut_rows)), counts)
    part = slots - (ends - counts)[owner]
    tiles = cut_rows[owner, 1]
    begin, end = part * tiles // counts[owner], (part + 1) * tiles // counts[owner]
    parts = np.stack(
        [
            cut_rows[owner, 0],
            (end - begin) | (slots + 1) << 32,
            cut_rows[owner, 2] + entry_bytes * begin,
            cut_rows[owner, 3],
            cut_rows[owner, 4] + begin,
        ],
        axis=1,
    )
    return np.concatenate([work[~is_long], parts]), long_rows


def _fair_limit(lengths: _Int64s, blocks: int) -> int:
    """From how many tiles on rows are cut, for the last block to end as soon as possible."""
    longest = max(1, int(lengths.max(initial=0)))
    share = -(-(int(lengths.sum()) + _ITEM_COST * len(lengths)) // blocks)
    best, least = longest, _expected_end(lengths + _ITEM_COST, blocks)
    for parts in (1, 2, 3):
        limit = max(_SHORTEST_PART, -(-share // parts))
        if limit >= longest:
            continue
        cut_rows = lengths[lengths > limit]
        counts = -(-cut_rows // limit)
        costs = np.repeat(-(-cut_rows // counts) + _PART_COST, counts)
        costs = np.concatenate([lengths[lengths <= limit] + _ITEM_COST, costs])
        end = _expected_end(costs, blocks) + _MERGE_COST
        if end < least:
            best, least = limit, end
    return best


def _expected_end(costs: _Int64s, blocks: int) -> float:
    """What the block that ends last has to do."""
    end = max(costs.sum() / blocks, float(costs.max(initial=0)))
    if blocks < len(costs) <= _MOST_DEALT:
        costs = -np.sort(-costs)
        end = float(np.bincount(_deal(costs, blocks), weights=costs).max())
    return end


def assign(tiles: _Int64s, blocks: int) -> tuple[_Int64s, npt.NDArray[np.int32]]:
    """Items dealt to blocks: the order they lie in, and where each block's are.

    Block b has number b of the order, and numbers ``begins[b]`` to ``begins[b + 1] - 1``: its first item is
    found without a look at `begins`, which saves small grids a trip to memory.

    Each to the block that has the least so far: then no block ends later than another by more than its last
    item. What runs at a time is side by side in memory, one head after the other, or the same keys would come
    from there again and again: of causal documents of 1024 tokens, with the longest rows of all heads first,
    a forward pass moved 700 MB where 268 would do, and memory was busy for 78 % of its 0.192 ms; in this
    order it takes 0.155. So only as many items as there are blocks are sorted by length; more at the end,
    where that makes blocks end together; and those that are long beside a block's share come first.

    Parameters
    ----------
    tiles : int64 [items]
        Their lengths, in the order of places.
    blocks : int

    Examples
    --------
    >>> import numpy as np
    >>> order, begins = assign(np.array([1, 2, 3, 4, 5]), 2)
    >>> order.tolist(), begins.tolist()
    ([4, 3, 1, 0, 2], [2, 4, 5])
    """
    if blocks >= len(tiles):
        return np.argsort(-tiles, kind="stable"), np.full(blocks + 1, len(tiles), np.int32)
    costs = tiles + _ITEM_COST
    wave = np.minimum(np.arange(len(tiles)), max(0, len(tiles) - _LAST_WAVE * blocks)) // blocks
    wave[costs > _LONG_SHARE * costs.sum() / blocks] = -1
    order = np.lexsort((-tiles, wave))
    block = _deal(costs[order], blocks)
    ends = np.cumsum(np.bincount(block, minlength=blocks))
    order = order[np.argsort(block, kind="stable")]
    firsts = np.concatenate([[0], ends[:-1]])
    begins = np.concatenate([[0], ends]) + np.arange(blocks, -1, -1)
    return np.concatenate([order[firsts], np.delete(order, firsts)]), begins.astype(np.int32)


def expected_load(tiles: int, items: int, longest: int, blocks: int) -> float:
    """What the last block to end has to do, in tiles, for so many tiles in so many items.

    Examples
    --------
    >>> expected_load(tiles=512, items=1, longest=512, blocks=128), expected_load(2, 1, 2, 128)
    (6.0, 4.0)
    """
    return max((tiles + _ITEM_COST * items) / blocks, float(min(longest, _SHORTEST_PART) + _ITEM_COST))


@kernel
def _deal(costs: _Int64s, blocks: int) -> npt.NDArray[np.int32]:
    """The block of each item, one after another: the one with the least load, of equals the first.

    A heap of (load, block).
    """
    dealt = np.empty(len(costs), np.int32)
    loads = np.zeros(blocks, np.int64)
    heap = np.arange(blocks).astype(np.int32)
    for item in range(len(costs)):
        first = heap[0]
        dealt[item] = first
        loads[first] += costs[item]
        place = 0
        while True:
            child = 2 * place + 1
            if child >= blocks:
                break
            least = heap[child]
            if child + 1 < blocks:
                other = heap[child + 1]
                if loads[other] < loads[least] or (loads[other] == loads[least] and other < least):
                    child += 1
                    least = other
            if loads[first] < loads[least] or (loads[first] == loads[least] and first < least):
                break
            heap[place] = least
            place = child
        heap[place] = first
    return dealt
