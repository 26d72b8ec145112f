"""What a Tensor-Core kernel is compiled for: element type, padded dimensions, tile shape, buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ...formats.tiles import TILE
from ..ptx.wgmma import CHUNK

__all__ = ["MASK_BYTES", "MOST_CHANGED_HEAD_DIM", "MOST_HEAD_DIM", "TileShape", "padded", "tile_shape"]

#: 256 columns are as wide as one instruction's result.
MOST_HEAD_DIM = 256
#: Beyond this, scores are not changed: at 256, sums and the least of changes, ALiBi, have 64 bytes spilled.
MOST_CHANGED_HEAD_DIM = 192
#: Dimensions are rounded up to a multiple of this: fewer kernels, and what is padded costs products of zeros.
_ROUNDING = 32
_ROW_BYTES = CHUNK * 2
#: A mask in lane order: 8 bytes for each of the 128 threads of either half of a tile.
MASK_BYTES = 2 * TILE * 8


class _Blocking(NamedTuple):
    """How keys pass through shared memory."""

    #: Keys a step; a tile is one step or two.
    keys: int
    #: Steps that lie in shared memory at a time.
    stages: int
    #: Buffers for queries, through which results leave, too. With two, loading the next queries and storing
    #: the last results hides behind the products of this tile row.
    query_buffers: int


#: By the wider of the two dimensions, rounded up to chunks: 227 KB of shared memory is the bound, and the
#: 240 registers of a thread: at 256, sums take 128 of them and leave no room for scores of 128 keys.
#: Measured on an H200 with dense tiles, 4096 tokens, float16, in TFLOP/s: at 64, 421 (64 keys, two blocks a
#: multiprocessor: 411); at 128, 616 (one query buffer, memory of their own for results: 594); at 256, 669.
_BLOCKINGS = {
    64: _Blocking(128, 4, 2),
    128: _Blocking(128, 2, 2),
    192: _Blocking(64, 2, 2),
    256: _Blocking(64, 2, 1),
}
#: Changes of scores of which one fits beside scores of 128 keys; others, or several, have steps of 64 keys.
_LIGHT_CHANGES = {64: ("alibi", "softcap", "relative", "modify"), 128: ("alibi", "softcap")}
_CHANGED_BLOCKINGS = _BLOCKINGS | dict.fromkeys(_LIGHT_CHANGES, _Blocking(64, 4, 2))


@dataclass(frozen=True)
class TileShape:
    """Compile-time numbers of a forward kernel.

    Attributes
    ----------
    kind : {"float16", "bfloat16"}
    depth, width : int
        Head and value dimension, rounded up.
    keys : int
        Keys a step.
    stages : int
    query_buffers : int
    masked : bool
        Whether some tiles are partial.
    negate : bool
        Whether the scale is negative: then products are negated and the kernel's scale is positive.
    changes : tuple
        What scores go through: see ``device/tile_changes.py``.
    """

    kind: str
    depth: int
    width: int
    keys: int
    stages: int
    query_buffers: int
    masked: bool
    negate: bool
    changes: tuple[Any, ...] = ()

    @property
    def steps(self) -> int:
        """Steps that a tile takes."""
        return TILE // self.keys

    @property
    def query_chunk(self) -> int:
        """Bytes of 64 columns of the queries, and of the results."""
        return TILE * _ROW_BYTES

    @property
    def key_chunk(self) -> int:
        """Bytes of 64 columns of a step's keys, and of its values."""
        return self.keys * _ROW_BYTES

    @property
    def key_chunks(self) -> int:
        """Chunks of the head dimension."""
        return -(-self.depth // CHUNK)

    @property
    def value_chunks(self) -> int:
        """Chunks of the value dimension."""
        return -(-self.width // CHUNK)

    @property
    def query_buffer(self) -> int:
        """Bytes of a buffer for queries or results."""
        return max(self.key_chunks, self.value_chunks) * self.query_chunk

    @property
    def keys_at(self) -> int:
        """Offset of the keys' stages in shared memory, behind the queries."""
        return self.query_buffers * self.query_buffer

    @property
    def values_at(self) -> int:
        """Offset of the values' stages."""
        return self.keys_at + self.stages * self.key_chunks * self.key_chunk

    @property
    def masks_at(self) -> int:
        """Offset of the stages' masks."""
        return self.values_at + self.stages * self.value_chunks * self.key_chunk

    @property
    def barriers_at(self) -> int:
        """Offset of the barriers, two for each query buffer, four for each stage; then of the stages' flags,
        and of the numbers of their first keys if scores are changed.
        """
        return self.masks_at + (self.stages * MASK_BYTES if self.masked else 0)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block; the swizzle wants it aligned to 1024, which nobody promises."""
        words = 2 if self.changes else 1
        return self.barriers_at + 16 * self.query_buffers + (32 + 4 * words) * self.stages + 1024


def padded(dimension: int) -> int:
    """A head or value dimension as kernels have it."""
    return -(-dimension // _ROUNDING) * _ROUNDING


def tile_shape(
    kind: str, head_dim: int, value_dim: int, *, masked: bool, negate: bool, changes: tuple[Any, ...] = ()
) -> TileShape:
    """The kernel for a kind of call.

    Examples
    --------
    >>> shape = tile_shape("float16", 80, 80, masked=True, negate=False)
    >>> shape.depth, shape.keys, shape.shared_bytes <= 227 << 10
    (96, 128, True)
    """
    depth, width = padded(head_dim), padded(value_dim)
    widest = -(-max(depth, width) // CHUNK) * CHUNK
    is_light = not changes or (len(changes) == 1 and changes[0][0] in _LIGHT_CHANGES.get(widest, ()))
    blocking = (_BLOCKINGS if is_light else _CHANGED_BLOCKINGS)[widest]
    return TileShape(kind, depth, width, *blocking, masked, negate, changes)
