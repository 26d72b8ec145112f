"""What the backward pass knows of each query beside its row: (lse * log2(e), delta), delta = dout . out.

Pairs of float32 behind one another, so that one copy brings both. Rows are padded to whole tiles. A row
without keys, and one beyond the last, has (inf, 0): its probabilities exp2(score - inf) are 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from numba import cuda, float32, int32, int64, types, uint32

from ...formats.tiles import TILE
from ..device.lanes import load_element, store_element
from ..device.rows import row_tools
from ..launch import launch, load_kernel
from ..view import DeviceView
from .operands import Operand

__all__ = [
    "PAIR_BYTES",
    "STATISTICS_SIGNATURE",
    "STATISTICS_THREADS",
    "StatisticsLaunch",
    "StatisticsShape",
    "make_statistics",
    "prepare_statistics",
    "with_columns",
]

STATISTICS_THREADS = 128
#: Elements of 16 bytes.
_CHUNK = 8
PAIR_BYTES = 8

STATISTICS_SIGNATURE = types.void(
    *[types.int64] * 4,  # out, dout, lse, pairs
    *[types.int32] * 4,  # blocks a head, heads, queries, columns
    *[types.int64] * 11,  # strides of out and dout, and (batch, head, row) of lse, in bytes
)


@dataclass(frozen=True)
class StatisticsShape:
    """Compile-time numbers of the kernel.

    Attributes
    ----------
    kind : {"float16", "bfloat16"}
    lanes : int
        That share a row, 8 elements each; a power of two.
    aligned : bool
        Whether rows of either array are whole pieces of 16 bytes at multiples of 16.
    """

    kind: str
    lanes: int
    aligned: bool

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return STATISTICS_THREADS // self.lanes


@functools.cache
def make_statistics(shape: StatisticsShape) -> Callable[..., None]:
    """The kernel's Python source."""
    lanes, rows = shape.lanes, shape.rows
    lane_bits = lanes.bit_length() - 1
    lane_address, load_row, _, sum_over_key, _ = row_tools(shape.kind, lanes, _CHUNK, shape.aligned, False)
    load_real, store_real = load_element("float32"), store_element("float32")
    log2_e = 1.0 / math.log(2.0)

    def kernel(
        out, dout, lse, pairs, blocks, heads, queries, columns,
        out_batch, out_head, out_row, out_column, dout_batch, dout_head, dout_row, dout_column,
        lse_batch, lse_head, lse_row,
    ):  # fmt: skip
        # 32 bits without sign: a division of 64 takes 100 instructions.
        entry = uint32(uint32(cuda.blockIdx.x) // uint32(blocks))
        first = int32(uint32(cuda.blockIdx.x) - uint32(entry * uint32(blocks))) * rows
        batch = int64(uint32(entry // uint32(heads)))
        head = int64(entry) - batch * heads
        thread = int32(cuda.threadIdx.x)
        part = int32(thread & (lanes - 1))
        row = int64(first + (thread >> lane_bits))
        # Rows beyond the last read the last one, so that all lanes meet in the sum.
        some = min(row, int64(queries) - 1)
        result = cuda.local.array(_CHUNK, float32)
        incoming = cuda.local.array(_CHUNK, float32)
        total = cuda.local.array(1, float32)
        start = lane_address(out + batch * out_batch + head * out_head + some * out_row, part)
        load_row(start, out_column, part, 1, columns, result, 0)
        start = lane_address(dout + batch * dout_batch + head * dout_head + some * dout_row, part)
        load_row(start, dout_column, part, 1, columns, incoming, 0)
        logarithm = load_real(lse + batch * lse_batch + head * lse_head + some * lse_row)
        total[0] = float32(0.0)
        for e in range(_CHUNK):
            total[0] += incoming[e] * result[e]
        sum_over_key(total, 1)
        shift, delta = logarithm * float32(log2_e), total[0]
        if row >= queries or logarithm == float32(-math.inf):
            # The result of a row without keys is 0 by definition, whatever its incoming gradient.
            shift, delta = float32(math.inf), float32(0.0)
        if part == 0:
            target = pairs + 8 * ((int64(entry) * blocks) * rows + row)
            store_real(target, shift)
            store_real(target + 4, delta)

    return kernel


class StatisticsLaunch(NamedTuple):
    """A launch that is ready but for addresses.

    Attributes
    ----------
    kernel : object
    blocks : int
    nbytes : int
        Of the pairs.
    rest : tuple of int
        The kernel's arguments behind the addresses.
    """

    kernel: Any
    blocks: int
    nbytes: int
    rest: tuple[int, ...]

    def run(self, out: int, dout: int, lse: int, pairs: int, stream: Any) -> None:
        """Queue it."""
        launch(self.kernel, self.blocks, STATISTICS_THREADS, stream, (out, dout, lse, pairs, *self.rest))


def prepare_statistics(kind: str, out: Operand, dout: Operand, lse: Operand, device: int) -> StatisticsLaunch:
    """The launch for arrays with these layouts and alignments; see :func:`with_columns` for `lse`."""
    batches, heads, queries, columns = out.lengths
    lanes = max(1, 1 << (-(-columns // _CHUNK) - 1).bit_length())
    aligned = columns % _CHUNK == 0 and all(
        operand.strides[3] == 2
        and operand.address % 16 == 0
        and all(stride % 16 == 0 for stride in operand.strides[:3])
        for operand in (out, dout)
    )
    shape = StatisticsShape(kind, lanes, aligned)
    padded = -(-queries // TILE) * TILE
    blocks_a_head = padded // shape.rows
    return StatisticsLaunch(
        load_kernel(make_statistics, shape, STATISTICS_SIGNATURE, STATISTICS_THREADS, device),
        batches * heads * blocks_a_head,
        batches * heads * padded * PAIR_BYTES,
        (blocks_a_head, heads, queries, columns, *out.strides, *dout.strides, *lse.strides[:3]),
    )


def with_columns(lse: DeviceView) -> DeviceView:
    """One number a row as rows of one column, so that all arrays of a call have the same axes."""
    return DeviceView(
        lse.address,
        (*lse.shape, 1),
        (*lse.strides, lse.dtype.itemsize),
        lse.dtype,
        lse.device,
        lse.stream,
        lse.library,
        lse.owner,
        lse.writable,
        lse.hold,
    )
