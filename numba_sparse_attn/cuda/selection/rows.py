"""Rows of q, of k, or of what was computed of them, in GPU memory; and how kernels find those of a head."""

from __future__ import annotations

from dataclasses import dataclass

from numba import cuda

from ..device.lanes import load_int64

__all__ = ["ROWS_ARGUMENTS", "DeviceRows", "limit_of", "rows_of_head"]

#: Arguments of a kernel for one set of rows: see :attr:`DeviceRows.arguments`.
ROWS_ARGUMENTS = 6


@dataclass(frozen=True, eq=False)
class DeviceRows:
    """Rows of all heads of all batch elements.

    Attributes
    ----------
    address : int
        Of the first element, unless there is a table.
    table : int
        Address of the addresses of all batch elements, where no stride leads from one to the next; else 0.
    strides : tuple of int
        (batch, head, row, column), in bytes.
    kind : str
        Name of the element type.
    heads, count, width : int
        Heads of a batch element, rows of a head, elements of a row.
    hold : object
        What keeps the memory.
    """

    address: int
    table: int
    strides: tuple[int, int, int, int]
    kind: str
    heads: int
    count: int
    width: int
    hold: object

    @property
    def arguments(self) -> tuple[int, ...]:
        """As kernels take them."""
        return (self.address, self.table, *self.strides)

    def aligned(self, nbytes: int, itemsize: int) -> bool:
        """Whether every row consists of whole words of so many bytes at multiples of that."""
        steps = (self.address, *self.strides[:3], self.width * itemsize)
        return self.strides[3] == itemsize and not self.table and all(step % nbytes == 0 for step in steps)


@cuda.jit(device=True, inline="always")
def rows_of_head(address, table, batch_stride, head_stride, batch, head):
    """Address of a head's first row."""
    if table != 0:
        return load_int64(table + 8 * batch) + head * head_stride
    return address + batch * batch_stride + head * head_stride


@cuda.jit(device=True, inline="always")
def limit_of(row, queries, per_row, offset, extra, divisor, most):
    """What :class:`~numba_sparse_attn.formats.limits.Limits` says of a row."""
    end = min((row + 1) * per_row, queries) + offset + extra
    if end <= 0:
        return most * 0
    return min(most, end // divisor)
