"""Arrays of a call as the copy engine wants them: four axes, strides in multiples of 16 bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..view import DeviceView, merged_stride

__all__ = ["Operand", "Part", "parts_of"]

#: The copy engine's units and bounds.
_ALIGNMENT = 16
_LONGEST_STRIDE = 1 << 40


class Operand(NamedTuple):
    """An array (batch, heads, rows, columns) of 16-bit elements.

    Attributes
    ----------
    address : int
    lengths : tuple of int
    strides : tuple of int
        In bytes.
    """

    address: int
    lengths: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]

    @property
    def boxable(self) -> bool:
        """Whether the copy engine can read and write it where it lies."""
        return (
            self.strides[-1] == 2
            and self.address % _ALIGNMENT == 0
            and all(
                stride % _ALIGNMENT == 0 and 0 < stride < _LONGEST_STRIDE
                for length, stride in zip(self.lengths[:-1], self.strides[:-1], strict=True)
                if length > 1
            )
        )

    def moved(self, address: int) -> Operand:
        """The same layout elsewhere."""
        return Operand(address, self.lengths, self.strides)

    def packed(self, address: int) -> Operand:
        """The layout of a copy: contiguous but for rows, which begin at multiples of 16 bytes."""
        row = -(-self.lengths[3] * 2 // _ALIGNMENT) * _ALIGNMENT
        head = self.lengths[2] * row
        return Operand(address, self.lengths, (self.lengths[1] * head, head, row, 2))

    @property
    def packed_bytes(self) -> int:
        """Size of such a copy."""
        return self.lengths[0] * self.packed(0).strides[0]


class Part(NamedTuple):
    """Some consecutive batch elements that every array reaches with one stride."""

    first: int
    length: int
    operands: tuple[Operand, ...]


def parts_of(arrays: tuple[DeviceView, ...]) -> Iterator[Part]:
    """All batch elements at once if the axes before heads merge in every array, else as many as do merge."""
    lead = arrays[0].shape[:-3]
    apart = 0  # axes that are walked through; without any left, there is nothing to merge
    while None in (merged := [merged_stride(lead[apart:], array.strides[apart:-3]) for array in arrays]):
        apart += 1
    count = math.prod(lead[apart:])
    for number, place in enumerate(np.ndindex(lead[:apart])):
        operands = []
        for array, step in zip(arrays, merged, strict=True):
            offset = sum(i * stride for i, stride in zip(place, array.strides, strict=False))
            heads, rows, columns = array.shape[-3:]
            head, row, column = array.strides[-3:]
            lengths, strides = (count, heads, rows, columns), (step or 0, head, row, column)
            operands.append(Operand(array.address + offset, lengths, strides))
        yield Part(number * count, count, tuple(operands))
