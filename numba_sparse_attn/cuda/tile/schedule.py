"""Tile lists and work lists on the device: which block takes which tile rows of which heads."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...formats.tiles import FULL, Tiles
from ..view import DeviceView
from .dealing import LONG_ROW_WORDS, WORK_BYTES, assign, cut
from .uploads import upload

__all__ = ["Schedule", "key_schedule_of", "schedule_of"]


class _Lists(NamedTuple):
    """Tile lists on a device, one a row or column of tiles; addresses stay valid while `hold` lives.

    Attributes
    ----------
    indptr : int64 array, on the host
        Where each list begins.
    entries : int32 array [tiles, words], on the host
    tiles, masks : int
        Addresses: of the entries, and of masks in lane order.
    hold : tuple of DeviceView
    """

    indptr: npt.NDArray[np.int64]
    entries: npt.NDArray[np.int32]
    tiles: int
    masks: int
    hold: tuple[DeviceView, ...]


class Schedule(NamedTuple):
    """A grid's work on a device, as ``forward_sm90.py`` and ``backward_sm90.py`` read it.

    Attributes
    ----------
    blocks : int
    work, begins : int
        Addresses.
    parts : int
        Slots of memory for what parts of cut rows give.
    long_rows, long_count : int
        Address of what ``merge.py`` needs to know about these rows, and their number.
    hold : object
        What keeps the addresses valid.
    """

    blocks: int
    work: int
    begins: int
    parts: int
    long_rows: int
    long_count: int
    hold: object


#: By a structure; by the first of the structures of a group's heads, and all of them.
_LISTS: weakref.WeakKeyDictionary[Tiles, dict[int, _Lists]] = weakref.WeakKeyDictionary()
_KEY_LISTS: weakref.WeakKeyDictionary[Tiles, dict[tuple[int, tuple[weakref.ref[Tiles], ...]], _Lists]] = (
    weakref.WeakKeyDictionary()
)


def _lists_of(structures: tuple[Tiles, ...], device: int) -> list[_Lists]:
    """(column, mask) pairs and masks in lane order, copied when structures are first used on a device: lists
    one behind the other, since copies cost more than what they copy, and masks of one pool once.
    """
    new = [tiles for tiles in dict.fromkeys(structures) if device not in _LISTS.setdefault(tiles, {})]
    if new:
        pools = {id(tiles.pool): tiles.lanes for tiles in new}
        lists = [np.stack([tiles.columns, tiles.mask_ids], axis=1) for tiles in new]
        pairs, *masks = upload(device, np.concatenate(lists), *pools.values())
        mask_of = dict(zip(pools, masks, strict=True))
        address = pairs.address
        for tiles, own in zip(new, lists, strict=True):
            mask = mask_of[id(tiles.pool)]
            _LISTS[tiles][device] = _Lists(tiles.indptr, own, address, mask.address, (pairs, mask))
            address += own.nbytes
    return [_LISTS[tiles][device] for tiles in structures]


def _key_lists_of(members: tuple[Tiles, ...], device: int) -> _Lists:
    """Lists by tile column of the structures of a group's heads: (head in the group, tile row, mask, 0).

    Head after head in each list, so that sums over a group have one order. Masks are the transposed ones.
    """
    known = _KEY_LISTS.setdefault(members[0], {})
    key = device, tuple(weakref.ref(tiles) for tiles in members)
    if key not in known:
        distinct = list(dict.fromkeys(members))
        sizes = [len(tiles.pool) for tiles in distinct]
        first_mask = dict(zip(distinct, np.cumsum([0, *sizes[:-1]]), strict=True))
        columns, entries = [], []
        for number, tiles in enumerate(members):
            lengths = np.diff(tiles.transposed_indptr)
            columns.append(np.repeat(np.arange(len(lengths)), lengths))
            ids = tiles.transposed_mask_ids
            masks = np.where(ids == FULL, FULL, ids + first_mask[tiles])
            rows = tiles.transposed_rows
            entries.append(
                np.stack(
                    [np.full_like(rows, number), rows, masks.astype(np.int32), np.zeros_like(rows)], axis=1
                )
            )
        by_column = np.argsort(np.concatenate(columns), kind="stable")
        in_order = np.ascontiguousarray(np.concatenate(entries)[by_column])
        copies = upload(device, in_order, np.concatenate([tiles.transposed_lanes for tiles in distinct]))
        indptr = sum((tiles.transposed_indptr for tiles in members[1:]), members[0].transposed_indptr)
        known[key] = _Lists(indptr, in_order, copies[0].address, copies[1].address, copies)
    return known[key]


def schedule_of(
    structures: tuple[Tiles, ...],
    which: npt.NDArray[np.int32],
    device: int,
    multiprocessors: int,
    *,
    cutting: bool = False,
) -> Schedule:
    """The work of one launch: every tile row of every head, one block a multiprocessor.

    Parameters
    ----------
    structures : tuple of Tiles
    which : int32 [batch, heads]
        Index into `structures`.
    cutting : bool
        Whether rows that are long beside a block's share are cut.
    """
    uses = which.reshape(-1)
    return _dealt(
        (
            (np.flatnonzero(uses == number), lists)
            for number, lists in enumerate(_lists_of(structures, device))
        ),
        device,
        multiprocessors,
        cutting=cutting,
    )


def key_schedule_of(
    structures: tuple[Tiles, ...],
    which: npt.NDArray[np.int32],
    group: int,
    device: int,
    multiprocessors: int,
    *,
    cutting: bool = False,
) -> Schedule:
    """The work of one launch: every tile column of every key head; `group` query heads share one.

    Lists have entries (head in the group, tile row, mask, 0), and masks are transposed.
    """
    groups, uses = np.unique(which.reshape(-1, group), axis=0, return_inverse=True)
    uses = uses.reshape(-1)
    return _dealt(
        (
            (
                np.flatnonzero(uses == number),
                _key_lists_of(tuple(structures[index] for index in members), device),
            )
            for number, members in enumerate(groups.tolist())
        ),
        device,
        multiprocessors,
        cutting=cutting,
    )


def _dealt(
    uses: Iterable[tuple[npt.NDArray[np.int64], _Lists]],
    device: int,
    multiprocessors: int,
    *,
    cutting: bool = False,
) -> Schedule:
    """Every list of every entry (a head of a batch element) that uses it, one block a multiprocessor."""
    parts, entries, hold, known = [], [], [], 0
    for users, lists in uses:
        rows = np.arange(len(lists.indptr) - 1)
        entry_bytes = lists.entries.itemsize * lists.entries.shape[1]
        of_rows = np.stack(
            [
                rows,
                np.diff(lists.indptr),
                lists.tiles + entry_bytes * lists.indptr[:-1],
                np.full(len(rows), lists.masks),
                known + lists.indptr[:-1],
            ],
            axis=1,
        )
        of_users = np.tile(of_rows, (len(users), 1))
        of_users[:, 0] += np.repeat(users << 32, len(rows))
        parts.append(of_users)
        entries.append(lists.entries)
        known += len(lists.entries)
        hold.append(lists)
    items = np.concatenate(parts)
    items = items[np.argsort(items[:, 0], kind="stable")]  # heads that share keys side by side
    long_rows = np.empty((0, LONG_ROW_WORDS), np.int64)
    if cutting:
        items, long_rows = cut(items, entry_bytes, multiprocessors)
    blocks = max(1, min(multiprocessors, len(items)))
    order, begins = assign(items[:, 1] & 0xFFFFFFFF, blocks)
    copies = upload(
        device,
        _as_read(items[order], np.concatenate(entries)),
        begins,
        *([long_rows] if len(long_rows) else []),
    )
    return Schedule(
        blocks=blocks,
        work=copies[0].address,
        begins=copies[1].address,
        parts=int(long_rows[:, 2].sum()),
        long_rows=copies[2].address if len(long_rows) else 0,
        long_count=len(long_rows),
        hold=(copies, hold),
    )


def _as_read(items: npt.NDArray[np.int64], entries: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Items with the first entry of their list in place of its number; see ``WORK_BYTES``."""
    work = np.zeros((len(items), WORK_BYTES // 8), np.int64)
    work[:, :4] = items[:, :4]
    some = np.flatnonzero(items[:, 1])
    work.view(np.int32)[some, 8 : 8 + entries.shape[1]] = entries[items[some, 4]]
    return work
