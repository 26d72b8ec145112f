"""What the kernel without Hopper's instructions is compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...formats.tiles import TILE

__all__ = ["FragmentShape", "fragment_shape"]

#: Dimensions are rounded up to a multiple of this: fewer kernels, and what is padded costs products of zeros.
_ROUNDING = 32
#: Rows in shared memory are multiples of this, all banks once: see ``device/shared_rows.py``.
_LINE = 128


class _Blocking(NamedTuple):
    """How a block shares its tile row, and how keys pass through shared memory."""

    #: Times 16 rows that a warp has; 128 rows make 8 of them.
    row_tiles: int
    #: Keys a step.
    keys: int
    #: Buffers of the ring through which a step's keys and then its values pass.
    buffers: int
    #: Whether queries stay in registers.
    queries_stay: bool


#: By the wider of the two dimensions, rounded up to 64. A warp that has 32 rows reads keys and values from
#: shared memory half as often as two with 16; sums of 32 rows and more than 128 columns are more than the
#: registers that a thread can have. All take at most 99 KB of shared memory, which every GPU since sm_80 has.
#: Reasoned, not measured: two blocks a multiprocessor, up to 128, where there are 164 KB, as on sm_80.
_BLOCKINGS = {
    64: _Blocking(2, 64, 4, True),
    128: _Blocking(2, 64, 3, False),
    192: _Blocking(1, 64, 2, True),
    256: _Blocking(1, 32, 2, False),
}


@dataclass(frozen=True)
class FragmentShape:
    """Compile-time numbers of a forward kernel.

    Attributes
    ----------
    kind : {"float16", "bfloat16"}
    depth, width : int
        Head and value dimension, rounded up.
    row_tiles : int
        Times 16 rows that a warp has.
    keys : int
        Keys a step.
    buffers : int
        Of the ring that a step's keys and its values take turns in.
    queries_stay : bool
        Whether queries stay in registers.
    masked : bool
        Whether some tiles are partial.
    negate : bool
        Whether the scale is negative: then queries are negated and the kernel's scale is positive.
    """

    kind: str
    depth: int
    width: int
    row_tiles: int
    keys: int
    buffers: int
    queries_stay: bool
    masked: bool
    negate: bool

    @property
    def threads(self) -> int:
        """Threads of a block, which has 128 queries."""
        return 32 * TILE // (16 * self.row_tiles)

    @property
    def steps(self) -> int:
        """Steps that a tile takes."""
        return TILE // self.keys

    @property
    def key_row(self) -> int:
        """Bytes of a row of keys in shared memory."""
        return -(-self.depth * 2 // _LINE) * _LINE

    @property
    def value_row(self) -> int:
        """Bytes of a row of values."""
        return -(-self.width * 2 // _LINE) * _LINE

    @property
    def query_row(self) -> int:
        """Bytes of a row of queries, where results come to lie later."""
        return max(self.key_row, self.value_row)

    @property
    def ring_at(self) -> int:
        """Offset of the ring, behind the queries."""
        return TILE * self.query_row

    @property
    def buffer(self) -> int:
        """Bytes of a buffer of the ring."""
        return self.keys * max(self.key_row, self.value_row)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, with what it may take to begin at a multiple of 128."""
        return self.ring_at + self.buffers * self.buffer + _LINE


def fragment_shape(kind: str, head_dim: int, value_dim: int, *, masked: bool, negate: bool) -> FragmentShape:
    """The kernel for a kind of call.

    Examples
    --------
    >>> shape = fragment_shape("float16", 80, 80, masked=True, negate=False)
    >>> shape.depth, shape.threads, shape.shared_bytes <= 99 << 10
    (96, 128, True)
    """
    depth, width = (-(-dimension // _ROUNDING) * _ROUNDING for dimension in (head_dim, value_dim))
    widest = -(-max(depth, width) // 64) * 64
    return FragmentShape(kind, depth, width, *_BLOCKINGS[widest], masked, negate)
