"""How a warp's lanes are laid over keys and head dimensions: the compile-time part of the warp kernels.

A row of K is cut into chunks of 16 bytes. ``lanes`` lanes share a key, each with every ``lanes``-th
chunk of it, so a warp reads ``32 / lanes`` keys at a time and every load is 16 bytes a lane, coalesced
along a key. ``steps`` such loads are in flight before the first is used.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MOST_HEAD_DIM", "WARPS", "WarpShape", "warp_shape"]

#: Largest head dimension: beyond it a lane's share no longer fits the registers.
MOST_HEAD_DIM = 512
#: Warps, hence queries, of a block.
WARPS = 4

_CHUNK_BYTES = 16
_ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
#: Accumulator words that loads in flight may occupy. On an H200, a random graph with 64 keys a row,
#: float16, d 64: 1, 2, 4, 8 steps ran at 27.2, 31.7, 29.6, 31.1 Gpair/s (2 steps are 32 words).
_IN_FLIGHT_WORDS = 32


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
        Whether column indices are int64 instead of int32.
    """

    kind: str
    lanes: int
    key_chunks: int
    value_chunks: int
    steps: int
    aligned: bool
    exact: bool
    wide: bool

    @property
    def chunk(self) -> int:
        """Elements in 16 bytes."""
        return _CHUNK_BYTES // _ELEMENT_BYTES[self.kind]


def warp_shape(kind: str, head_dim: int, value_dim: int, *, aligned: bool, wide: bool = False) -> WarpShape:
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
    return WarpShape(kind, lanes, key_chunks, value_chunks, steps, aligned, exact, wide)
