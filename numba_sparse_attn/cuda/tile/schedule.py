"""Which block takes which tile rows of which heads, and tile lists on the device."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...formats.tiles import Tiles
from ..view import DeviceView
from .uploads import upload

__all__ = ["Schedule", "assign", "schedule_of"]

#: What an item costs beside its tiles, in tiles: filling and emptying the pipeline, writing results.
_ITEM_COST = 1


class _Lists(NamedTuple):
    """A structure on a device; addresses stay valid while `hold` lives."""

    columns: int
    masks: int
    hold: tuple[DeviceView, ...]


class Schedule(NamedTuple):
    """A grid's work on a device, as ``forward_sm90.py`` reads it.

    Attributes
    ----------
    blocks : int
    work, begins : int
        Addresses.
    hold : object
        What keeps them valid.
    """

    blocks: int
    work: int
    begins: int
    hold: object


_LISTS: weakref.WeakKeyDictionary[Tiles, dict[int, _Lists]] = weakref.WeakKeyDictionary()


def _lists_of(tiles: Tiles, device: int) -> _Lists:
    """(column, mask) pairs and masks in lane order, copied when a structure is first used on a device."""
    known = _LISTS.setdefault(tiles, {})
    if device not in known:
        pairs = np.stack([tiles.columns, tiles.mask_ids], axis=1)
        copies = upload(device, pairs, tiles.lanes)
        known[device] = _Lists(copies[0].address, copies[1].address, copies)
    return known[device]


def assign(costs: npt.NDArray[np.int64], blocks: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Items dealt to blocks: the items in each block's order, and where each block's begin.

    Longest first, in rounds that go there and back, so that a block that has had the longest item of one
    round has the shortest of the next. Dealt in one direction, a causal pattern over 16,384 tokens left the
    first block with 12 % more than its share.

    Examples
    --------
    >>> import numpy as np
    >>> order, begins = assign(np.array([1, 2, 3, 4, 5]), 2)
    >>> order.tolist(), begins.tolist()
    ([4, 1, 0, 3, 2], [0, 3, 5])
    """
    order = np.argsort(-costs, kind="stable")
    turn, seat = np.divmod(np.arange(len(costs)), blocks)
    block = np.where(turn % 2 == 0, seat, blocks - 1 - seat)
    begins = np.zeros(blocks + 1, np.int32)
    np.cumsum(np.bincount(block, minlength=blocks), out=begins[1:])
    return order[np.argsort(block, kind="stable")], begins


def schedule_of(
    structures: tuple[Tiles, ...], which: npt.NDArray[np.int32], device: int, multiprocessors: int
) -> Schedule:
    """The work of one launch: every tile row of every head, one block a multiprocessor.

    Parameters
    ----------
    structures : tuple of Tiles
    which : int32 [batch, heads]
        Index into `structures`.
    """
    uses = which.reshape(-1)
    lists = [_lists_of(tiles, device) for tiles in structures]
    places, lengths, columns, masks = [], [], [], []
    for number, (tiles, on_device) in enumerate(zip(structures, lists, strict=True)):
        entries = np.flatnonzero(uses == number)
        rows = np.arange(len(tiles.indptr) - 1)
        places.append(((entries[:, None] << 32) + rows).reshape(-1))
        lengths.append(np.tile(np.diff(tiles.indptr), len(entries)))
        columns.append(np.tile(on_device.columns + 8 * tiles.indptr[:-1], len(entries)))
        masks.append(np.full(len(entries) * len(rows), on_device.masks))
    work = np.stack([np.concatenate(part) for part in (places, lengths, columns, masks)], axis=1)
    work = work[np.argsort(work[:, 0], kind="stable")]  # heads that share keys side by side
    blocks = max(1, min(multiprocessors, len(work)))
    order, begins = assign(work[:, 1] + _ITEM_COST, blocks)
    work_view, begins_view = copies = upload(device, np.ascontiguousarray(work[order]), begins)
    return Schedule(blocks, work_view.address, begins_view.address, (copies, lists))
