"""Reading random rows and adding them up, one warp a query: what graph attention costs without attention.

Lane ``l`` of a warp reads 16-byte piece ``l % lanes`` of key number ``l // lanes`` of each step, as the warp
engine does. The bits are added as float32 whatever they mean; only that every one of them is read matters.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from numba import cuda, float32, int64, types

from numba_sparse_attn.cuda.device import lanes as device

__all__ = ["GATHER_SIGNATURE", "THREADS", "GatherShape", "gather_shape", "make_gather"]

WARPS = 4
THREADS = 32 * WARPS
#: Loads of each array that a lane has under way at once.
STEPS = 8
PIECE = 16

GATHER_SIGNATURE = types.void(
    *[types.int64] * 3,  # k, v, out
    *[types.int64] * 2,  # indptr (int64), indices (int32)
    *[types.int64] * 2,  # queries, keys
)


class GatherShape(NamedTuple):
    """`lanes` lanes share a row, each with `pieces` of its 16-byte pieces.

    `source` is a digest of this file: the kernels' cache on disk knows the sources of the package only.
    """

    lanes: int
    pieces: int
    source: str


@functools.cache
def _source_digest() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def gather_shape(row_bytes: int) -> GatherShape:
    """The layout for rows of that many bytes, which have to fill whole lanes.

    >>> gather_shape(128)[:2], gather_shape(1024)[:2]
    ((8, 1), (32, 2))
    """
    count, rest = divmod(row_bytes, PIECE)
    lanes = min(32, count & -count)
    if rest or not count or count // lanes > 4:
        raise ValueError(f"rows of {row_bytes} bytes; the gather kernel reads 16 bytes a lane, a few times")
    return GatherShape(lanes, count // lanes, _source_digest())


def make_gather(shape: GatherShape) -> Callable[..., None]:
    """The kernel's Python source; grid ``(heads * ceil(queries / WARPS),)``, arrays ``(heads, n, row)``."""
    lanes, pieces, _ = shape
    keys_a_step = 32 // lanes
    keys_a_round = keys_a_step * STEPS
    words = 4 * pieces
    buffer = STEPS * words
    row_bytes = lanes * pieces * PIECE
    load, store = device.load_chunk("float32"), device.store_chunk("float32")
    load_int32, load_int64, xor_lane = device.load_int32, device.load_int64, device.xor_lane

    def kernel(k: Any, v: Any, out: Any, indptr: Any, indices: Any, queries: Any, keys: Any) -> None:
        lane = cuda.threadIdx.x & 31
        blocks_a_head = (queries + WARPS - 1) // WARPS
        block = int64(cuda.blockIdx.x)
        head = block // blocks_a_head
        row = (block - head * blocks_a_head) * WARPS + (cuda.threadIdx.x >> 5)
        if row >= queries:
            return
        begin = load_int64(indptr + 8 * row)
        end = load_int64(indptr + 8 * row + 8)
        part = int64(lane & (lanes - 1)) * PIECE
        place = int64(lane // lanes)
        base = head * keys * row_bytes + part
        total = cuda.local.array(words, float32)
        key_rows = cuda.local.array(buffer, float32)
        value_rows = cuda.local.array(buffer, float32)
        for e in range(words):
            total[e] = float32(0.0)
        first = begin + place
        while first < end:
            for s in range(STEPS):
                # Beyond the end the last key is read again: a load inside of a branch is waited for.
                at = min(first + s * keys_a_step, end - 1)
                offset = base + int64(load_int32(indices + 4 * at)) * row_bytes
                for p in range(pieces):
                    load(k + offset + p * lanes * PIECE, key_rows, s * words + 4 * p)
                    load(v + offset + p * lanes * PIECE, value_rows, s * words + 4 * p)
            for e in range(buffer):
                total[e % words] += key_rows[e] + value_rows[e]
            first += keys_a_round
        distance = lanes
        while distance < 32:
            for e in range(words):
                total[e] += xor_lane(total[e], distance)
            distance <<= 1
        if place == 0:
            for p in range(pieces):
                target = out + (head * queries + row) * row_bytes + part + p * lanes * PIECE
                store(target, total, 4 * p)

    return kernel
