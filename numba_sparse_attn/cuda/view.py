"""What the launchers see of an array in GPU memory."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import EngineError

__all__ = ["DeviceView", "Operand", "batch_parts", "merged_stride", "require_contiguous"]

#: Address, or offset to one, and (batch, head, row, column) strides in bytes.
Operand = tuple[int, tuple[int, ...]]


@dataclass(slots=True, eq=False)
class DeviceView:
    """An array in GPU memory; like a NumPy array it has ``shape``, ``strides``, ``dtype`` and ``ndim``.

    Not to be changed once made. It is not frozen because that would triple the time to make one.

    Attributes
    ----------
    address : int
        Of the element with all indices zero.
    shape : tuple of int
    strides : tuple of int
        In bytes; zero and negative ones occur.
    dtype : numpy dtype
    device : int
        Number of the GPU.
    stream : int
        Handle of the stream on which the array is ready.
    library : {"torch", "cupy", "jax", "numba", "other"}
    owner : object
        What the user passed, or what the user gets; keeps the memory alive.
    writable : bool
    hold : object
        A second thing that must stay alive while the memory is read: a DLPack capsule.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    stream: int
    library: str
    owner: Any = field(repr=False)
    writable: bool = True
    hold: Any = field(default=None, repr=False)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, gaps not counted."""
        return self.size * self.dtype.itemsize

    def with_leading_axis(self) -> DeviceView:
        """The same array with one more axis, of length 1, in front."""
        return DeviceView(
            self.address,
            (1, *self.shape),
            (0, *self.strides),
            self.dtype,
            self.device,
            self.stream,
            self.library,
            self.owner,
            self.writable,
            self.hold,
        )

    def extent(self) -> tuple[int, int]:
        """First byte of the array, and first byte behind it."""
        low, high = _reach(self.shape, self.strides, self.dtype.itemsize)
        return self.address + low, self.address + high


@functools.lru_cache(maxsize=1024)
def _reach(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Where an array begins and ends, from its element with all indices zero."""
    if 0 in shape:
        return 0, 0
    reach = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    return sum(min(step, 0) for step in reach), sum(max(step, 0) for step in reach) + itemsize


def merged_stride(lengths: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """Stride of the axes flattened into one; None where there is none."""
    axes = [(length, stride) for length, stride in zip(lengths, strides, strict=True) if length != 1]
    for (_, outer), (length, inner) in itertools.pairwise(axes):
        if outer != length * inner:
            return None
    return axes[-1][1] if axes else 0


def batch_parts(arrays: tuple[DeviceView, ...]) -> Iterator[tuple[int, int, tuple[Operand, ...]]]:
    """(first batch element, how many, operands): all at once if the axes before heads merge in every
    array, else one by one. Addresses are relative to the arrays'.
    """
    lead = arrays[0].shape[:-3]
    merged = [merged_stride(lead, array.strides[:-3]) for array in arrays]
    if None not in merged:
        pairs = zip(arrays, merged, strict=True)
        yield (
            0,
            math.prod(lead),
            tuple((0, (int(stride or 0), *array.strides[-3:])) for array, stride in pairs),
        )
        return
    for first, place in enumerate(np.ndindex(lead)):
        operands = []
        for array in arrays:
            offset = sum(i * stride for i, stride in zip(place, array.strides[:-3], strict=True))
            operands.append((offset, (0, *array.strides[-3:])))
        yield first, 1, tuple(operands)


def require_contiguous(lse: DeviceView) -> None:
    """Refuse an lse that kernels cannot read with one stride."""
    if lse.size and merged_stride(lse.shape, lse.strides) not in (0, lse.dtype.itemsize):
        raise EngineError(
            f"lse with shape {lse.shape} and strides {lse.strides}, on the GPU",
            "a contiguous lse, as the forward pass returns it",
            "copy it to a contiguous array",
        )
