"""Descriptions of tensors for the copy engine, kept on the device by layout and addresses.

A description costs some ten microseconds to make and to copy, and holds an address. Programs use the same
addresses again and again, so the descriptions of a call's four arrays are kept as a set, and a further call
finds it in a dictionary. A set that a captured CUDA graph reads stays for ever; the others are
forgotten together when the memory is full, after waiting for all kernels that may read them.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import streams
from .operands import Operand
from .uploads import overwrite, upload

__all__ = ["MapSets", "TensorLayout", "map_sets"]

_SET_BYTES = 4 * 128
#: Sets of one allocation, half a megabyte.
_SETS = 1024
_BOX_COLUMNS = 64


@dataclass(frozen=True, eq=False)
class TensorLayout:
    """What the descriptions of q, k, v and out say beside the addresses; known by its identity.

    Attributes
    ----------
    kind : {"float16", "bfloat16"}
    operands : tuple of Operand
        Their addresses do not count.
    rows : tuple of int
        Rows of a box.
    """

    kind: str
    operands: tuple[Operand, ...]
    rows: tuple[int, ...]

    def describe(self, addresses: tuple[int, ...]) -> npt.NDArray[np.uint64]:
        """The descriptions behind one another, 128 bytes each."""
        parts = zip(addresses, self.operands, self.rows, strict=True)
        return np.concatenate(
            [_encode(address, operand, rows, self.kind) for address, operand, rows in parts]
        )


class MapSets:
    """The sets of one device."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._memory: list[Any] = []
        self._free: list[int] = []
        self._known: dict[tuple[TensorLayout, tuple[int, ...]], int] = {}
        self._in_graphs: set[tuple[TensorLayout, tuple[int, ...]]] = set()
        #: To be held from asking for a set until the kernel that reads it is queued: whoever makes room in
        #: the meantime waits for queued kernels only.
        self.lock = threading.Lock()

    def address_of(self, layout: TensorLayout, addresses: tuple[int, ...], *, capturing: bool) -> int:
        """Where the set for these arrays lies; `capturing` if a graph will read it."""
        key = layout, addresses
        address = self._known.get(key)
        if address is None:
            address = self._room(capturing)
            overwrite(self._device, address, layout.describe(addresses))
            self._known[key] = address
        if capturing:
            self._in_graphs.add(key)
        return address

    def _room(self, capturing: bool) -> int:
        if not self._free and self._memory and not capturing:
            streams.call("cuCtxSynchronize")
            self._free = [address for key, address in self._known.items() if key not in self._in_graphs]
            self._known = {key: address for key, address in self._known.items() if key in self._in_graphs}
        if not self._free:
            (memory,) = upload(self._device, np.zeros(_SETS * _SET_BYTES, np.uint8))
            self._memory.append(memory)
            self._free = [memory.address + number * _SET_BYTES for number in range(_SETS)]
        return self._free.pop()


@functools.cache
def map_sets(device: int) -> MapSets:
    """The sets of a device, as long as the process lives."""
    return MapSets(device)


def _encode(address: int, operand: Operand, rows: int, kind: str) -> npt.NDArray[np.uint64]:
    """The 128 bytes for boxes of `rows` rows of one head."""
    driver = streams.driver()
    wide, narrow = driver.cuuint64_t, driver.cuuint32_t
    batch, head, row, _ = operand.strides
    batches, heads, length, columns = operand.lengths
    # An axis without a second element has any stride; the copy engine wants a sensible one.
    tight = -(-columns * 2 // 16) * 16
    strides = [
        stride if count > 1 else tight for stride, count in ((row, length), (head, heads), (batch, batches))
    ]
    tensor_map = streams.call(
        "cuTensorMapEncodeTiled",
        getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{kind.upper()}"),
        4,
        address,
        [wide(count) for count in (columns, length, heads, batches)],
        [wide(stride) for stride in strides],
        [narrow(count) for count in (_BOX_COLUMNS, rows, 1, 1)],
        [narrow(1)] * 4,
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    return np.array([int(word) for word in tensor_map.opaque], np.uint64)
