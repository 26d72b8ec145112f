"""How a warp's lanes are laid over keys and head dimensions: the compile-time part of the warp kernels.

A row of K is cut into chunks of 16 bytes. ``lanes`` lanes share a key, each with every ``lanes``-th
chunk of it, so a warp reads ``32 / lanes`` keys at a time and every load is 16 bytes a lane, coalesced
along a key. ``steps`` such loads are in flight before the first is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["MOST_HEAD_DIM", "SHARING_WARPS", "WARPS", "WarpShape", "shared_shape", "warp_shape"]

#: Largest head dimension: beyond it a lane's share no longer fits the registers.
MOST_HEAD_DIM = 512
#: Warps, hence queries, of a block whose warps have nothing to do with one another.
WARPS = 4
#: Warps, hence consecutive queries, of a block that stages keys in shared memory for all of them.
SHARING_WARPS = 8

_CHUNK_BYTES = 16
_ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
#: Accumulator words that loads in flight may occupy. On an H200, a random graph with 64 keys a row, d 64,
#: 1, 2 and 4 steps ran at 34.1, 36.1 and 34.5 Gpair/s in float16 and at 17.9, 18.2 and 18.3 in float32,
#: where a kernel that only reads the rows runs at 37.0 and 18.7. 32 words are 2 and 4 steps.
_IN_FLIGHT_WORDS = 32
#: Bytes of accumulators for a row of K and one of V that a lane may hold while the registers are limited.
_MOST_CROWDED_BYTES = 64
#: Shared memory of a block: two buffers of keys. With 32 KB, registers limit the blocks that run at a time.
_BUFFER_BYTES = 16_384
#: Fewer rows a buffer than this are not worth a barrier.
_FEWEST_STAGED = 8


@dataclass(frozen=True)
class WarpShape:
    """Compile-time parameters of a warp kernel; head dimensions themselves are run-time values.

    Attributes
    ----------
    kind : str
        Element type of q, k, v.
    lanes : int
        Lanes that share a key: a power of two.
    key_chunks, value_chunks : int
        Chunks of a row of K (and Q), and of V (and out), that one lane holds.
    steps : int
        Keys (times 32 / lanes) that are loaded before any is used.
    aligned : bool
        Whether rows may be read 16 bytes at a time.
    exact : bool
        Whether rows of K and V fill their lanes' chunks, so that no lane must check for the end of a row.
    wide : bool
        Whether indices or row strides exceed 32 bits.
    mixed : bool
        Backward, by keys: whether an index names a query head of the group besides the query.
    warps : int
        Warps of a block.
    tile : int
        Rows that are staged in shared memory at a time; 0 if every warp reads its own from global memory.
    changes : tuple
        What scores go through: see ``cuda/device/changes.py``.
    """

    kind: str
    lanes: int
    key_chunks: int
    value_chunks: int
    steps: int
    aligned: bool
    exact: bool
    wide: bool
    mixed: bool = False
    warps: int = WARPS
    tile: int = 0
    changes: tuple[Any, ...] = ()

    @property
    def chunk(self) -> int:
        """Elements in 16 bytes."""
        return _CHUNK_BYTES // _ELEMENT_BYTES[self.kind]

    @property
    def real(self) -> str:
        """The accumulator type."""
        return "float64" if self.kind == "float64" else "float32"

    @property
    def real_bytes(self) -> int:
        """Bytes of an accumulator."""
        return 8 if self.kind == "float64" else 4

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    def blocks(self, threads: int) -> int:
        """Blocks that a multiprocessor should run at a time, if that is to be so many threads.

        Told so, the compiler keeps to 65,536 / threads registers. Lanes that hold much, and kernels that
        compute addresses of all kinds, would spill.
        """
        held = (self.key_chunks + self.value_chunks) * self.chunk * self.real_bytes
        crowded = held > _MOST_CROWDED_BYTES or self.kind == "float64"
        crowded = crowded or not self.aligned or self.wide or self.mixed or bool(self.changes)
        return 1 if crowded else threads // self.threads

    @property
    def keys_a_step(self) -> int:
        """Rows that a warp reads at once."""
        return 32 // self.lanes

    @property
    def keys_a_round(self) -> int:
        """Rows that a warp reads before it uses the first."""
        return self.keys_a_step * self.steps

    @property
    def staged_row_bytes(self) -> int:
        """A row of K and a row of V in shared memory, filled up with zeros to whole lanes."""
        return self.lanes * (self.key_chunks + self.value_chunks) * _CHUNK_BYTES


def warp_shape(
    kind: str, head_dim: int, value_dim: int, *, aligned: bool, wide: bool = False, mixed: bool = False
) -> WarpShape:
    """The layout for head dimensions up to ``MOST_HEAD_DIM``.

    Examples
    --------
    >>> shape = warp_shape("float16", 64, 64, aligned=True)
    >>> shape.lanes, shape.key_chunks, shape.value_chunks, shape.steps, shape.exact
    (8, 1, 1, 2, True)
    """
    chunk = _CHUNK_BYTES // _ELEMENT_BYTES[kind]
    key_chunks, value_chunks = -(-head_dim // chunk), -(-value_dim // chunk)
    lanes = min(32, 1 << (max(key_chunks, value_chunks) - 1).bit_length())
    key_chunks, value_chunks = -(-key_chunks // lanes), -(-value_chunks // lanes)
    words = (key_chunks + value_chunks) * chunk * (2 if kind == "float64" else 1)
    steps = max(1, min(lanes, _IN_FLIGHT_WORDS // words))
    exact = key_chunks * lanes * chunk == head_dim and value_chunks * lanes * chunk == value_dim
    return WarpShape(kind, lanes, key_chunks, value_chunks, steps, aligned, exact, wide, mixed)


def shared_shape(shape: WarpShape, warps: int = SHARING_WARPS) -> WarpShape | None:
    """The layout in which a block stages runs of keys; None where rows cannot be, or should not be staged.

    Windows of 257 keys at d 64, forward and backward, ran 1.13 and 1.18 times as fast as with keys gathered
    by each warp (through the first-level cache) in float16, 1.08 and 1.22 times in float32, full attention
    1.18 and 1.5 times; in float64, which is bound by arithmetic, 0.89 and 0.96 times.

    Examples
    --------
    >>> shared_shape(warp_shape("float16", 64, 64, aligned=True)).tile
    64
    >>> shared_shape(warp_shape("float64", 64, 64, aligned=True)) is None
    True
    """
    if shape.kind == "float64":
        return None
    rows = _BUFFER_BYTES // shape.staged_row_bytes
    tile = 1 << rows.bit_length() - 1 if rows else 0
    if tile < _FEWEST_STAGED or not shape.aligned or shape.wide or shape.mixed:
        return None
    return replace(shape, warps=warps, tile=min(tile, 64))
