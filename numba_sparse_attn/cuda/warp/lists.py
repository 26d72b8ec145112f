"""What lies on a GPU beside the arrays of a call: schedules of structures, and tables of heads.

Everything is copied when it is first used on a device, and stays as long as the structure lives.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ...formats.census import fair_part
from ...formats.csr import Csr, canonical, to_csr
from ...formats.work import Structure
from .. import staging, streams
from ..view import DeviceView
from .schedule import PART_KEYS, Schedule, make_schedule, share_runs
from .shape import SHARING_WARPS, WARPS

__all__ = ["Heads", "Lists", "by_key_of", "entries_by_key_of", "heads_with", "lists_of", "table_of"]


class Lists(NamedTuple):
    """A schedule on a device; addresses stay valid while `hold` lives."""

    blocks: int
    parts: int
    items: int
    indices: int
    segments: tuple[int, int, int]
    long_rows: int
    long_count: int
    shared: bool
    hold: tuple[DeviceView, ...]


#: Longer than any row.
_NEVER = 1 << 30

#: By structure; then by device, whether blocks may stage runs, whether indices are widened, and whether rows
#: are left whole.
_LISTS: weakref.WeakKeyDictionary[Csr, dict[tuple[int, bool, bool, bool], Lists]] = (
    weakref.WeakKeyDictionary()
)
_LISTS_LOCK = threading.Lock()


def lists_of(csr: Csr, device: int, *, share: bool, wide: bool, whole: bool = False) -> Lists:
    """The schedule of a structure, copied to the device when it is first used there.

    `share` says whether blocks may stage runs of keys; it is done if that pays. `whole` leaves rows whole,
    however long they are.
    """
    with _LISTS_LOCK:
        known = _LISTS.setdefault(csr, {})
        found = known.get((device, share, wide, whole))
        if found is None:
            part_keys = min(PART_KEYS, fair_part(csr.nnz))
            schedule = share_runs(csr, SHARING_WARPS, part_keys) if share else None
            if schedule is not None:
                found = _copied(schedule, device, wide)
            elif share:
                found = known.get((device, False, wide, whole))
            if found is None:
                found = _copied(make_schedule(csr, _NEVER if whole else part_keys, WARPS), device, wide)
            known[device, share, wide, whole] = found
            if not found.shared:
                known[device, False, wide, whole] = found
        return found


def _copied(schedule: Schedule, device: int, wide: bool) -> Lists:
    indices = schedule.indices.astype(np.int64 if wide else np.int32, copy=False)
    arrays: list[npt.NDArray[Any]] = [schedule.items, indices, schedule.long_rows]
    if schedule.segments is not None:
        arrays += [schedule.segments.spans, schedule.segments.runs, schedule.segments.bounds]
    stream = streams.own_stream(device)  # the caller's may be capturing a graph, or be gone tomorrow
    copies = tuple(staging.to_device(array, device, stream) for array in arrays)
    streams.stream_object(stream, device).sync()
    addresses = [copy.address for copy in copies] + [0, 0, 0]
    return Lists(
        blocks=len(schedule.items),
        parts=schedule.parts,
        items=addresses[0],
        indices=addresses[1],
        segments=(addresses[3], addresses[4], addresses[5]),
        long_rows=addresses[2],
        long_count=len(schedule.long_rows),
        shared=schedule.segments is not None,
        hold=copies,
    )


@functools.lru_cache(maxsize=256)
def table_of(entries: bytes, kind: str, device: int) -> DeviceView:
    """A short table on a device: numbers of heads, or a number for every head."""
    stream = streams.own_stream(device)
    view = staging.to_device(np.frombuffer(entries, kind), device, stream)
    streams.stream_object(stream, device).sync()
    return view


_MIXED: weakref.WeakKeyDictionary[Structure, dict[tuple[int, ...], tuple[Csr, Any]]] = (
    weakref.WeakKeyDictionary()
)


def by_key_of(structures: Sequence[Structure]) -> Csr:
    """The queries that see a key, for query heads with these structures that share it.

    One structure: its transpose. Several: their transposes side by side, so that an index names the
    head, ``index // n_q``, and the query, ``index % n_q``.
    """
    first = structures[0]
    assert isinstance(first, Csr)
    if len(structures) == 1:
        return first.transposed
    kept = _MIXED.setdefault(first, {})
    key = tuple(id(structure) for structure in structures)
    if key not in kept:
        sides = [to_csr(structure.transposed) for structure in structures if isinstance(structure, Csr)]
        joined = sparse.hstack(sides, format="csr")
        csr = canonical(joined.shape, joined.indptr, joined.indices)
        # References to the others keep their ids theirs; the first is the key of the dictionary.
        kept[key] = csr, tuple(structures[1:])
    return kept[key][0]


_ENTRIES: weakref.WeakKeyDictionary[Csr, dict[int, DeviceView]] = weakref.WeakKeyDictionary()


def entries_by_key_of(structures: Sequence[Structure], device: int) -> DeviceView:
    """For every entry of :func:`by_key_of`, which entry of its head's rows it is; on a device."""
    by_key = by_key_of(structures)
    with _LISTS_LOCK:
        known = _ENTRIES.setdefault(by_key, {})
        if device not in known:
            sides = [
                sparse.csr_array(
                    # Numbers from 1: what is 0 would not be stored.
                    (structure.entries_by_key + 1, structure.transposed.indices, structure.transposed.indptr),
                    shape=structure.transposed.shape,
                )
                for structure in structures
                if isinstance(structure, Csr)
            ]
            numbers = sparse.hstack(sides, format="csr").data - 1
            stream = streams.own_stream(device)
            known[device] = staging.to_device(numbers, device, stream)
            streams.stream_object(stream, device).sync()
        return known[device]


class Heads(NamedTuple):
    """Heads of a launch: the address of their table or 0, how many, and what keeps the table."""

    table: int
    number: int
    hold: DeviceView | None


def heads_with(which: npt.NDArray[Any], number: int, device: int) -> Heads:
    """The entries of a flat table of structure numbers that have one of them."""
    entries = np.flatnonzero(which == number).astype(np.int32)
    if entries.size == which.size:
        return Heads(0, entries.size, None)
    table = table_of(entries.tobytes(), "int32", device)
    return Heads(table.address, entries.size, table)
