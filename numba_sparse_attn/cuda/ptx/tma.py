"""The copy engine (TMA): boxes of a tensor, and plain runs of bytes, between global and shared memory.

A tensor is described by 128 bytes that the driver makes (``cuTensorMapEncodeTiled``), in global memory
and aligned to 64. Elements of a box beyond the tensor are read as 0 and not written; they count as
transferred bytes all the same. Coordinates are (column, row, head, batch), innermost first.
"""

from __future__ import annotations

from numba.core.types import int32, int64, uint32

from .instructions import instruction

__all__ = [
    "acquire_map",
    "commit_stores",
    "copy_bytes",
    "load_box",
    "store_box",
    "wait_for_reads",
    "wait_for_stores",
]

_PLACE = (int32, int32, int32, int32)

#: (map): let this thread's copies read the description as it is now, and not as it is remembered from a
#: time when its memory held another one.
acquire_map = instruction("fence.proxy.tensormap::generic.acquire.gpu [$0], 128;", "l", (int64,))

#: (shared address, map, barrier, column, row, head, batch): its bytes complete on the barrier.
load_box = instruction(
    "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
    " [$0], [$1, {$3, $4, $5, $6}], [$2];",
    "r,l,r,r,r,r,r",
    (uint32, int64, uint32, *_PLACE),
)

#: (shared address, map, column, row, head, batch): belongs to this thread's next group of stores.
store_box = instruction(
    "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [$1, {$2, $3, $4, $5}], [$0];",
    "r,l,r,r,r,r",
    (uint32, int64, *_PLACE),
)

#: (shared address, global address, bytes, barrier): all multiples of 16.
copy_bytes = instruction(
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];",
    "r,l,r,r",
    (uint32, int64, int32, uint32),
)

#: Ends a group of stores.
commit_stores = instruction("cp.async.bulk.commit_group;", "", ())

#: Returns when shared memory that this thread's stores read may be written again ...
wait_for_reads = instruction("cp.async.bulk.wait_group.read 0;", "", ())

#: ... and when what they write is in global memory.
wait_for_stores = instruction("cp.async.bulk.wait_group 0;", "", ())
