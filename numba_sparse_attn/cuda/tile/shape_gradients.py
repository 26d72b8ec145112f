"""What a kernel of the backward pass is compiled for: element type, padded dimensions, steps, buffers.

Both sweeps are one kernel. An item is 128 rows of two matrices that stay in shared memory, and steps bring
the rows of two others: for gradients of queries (q, dout) stay and (k, v) come; for those of keys (k, v) stay
and the (q, dout) of every query head of the group come, each step with the statistics of its queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...formats.tiles import TILE
from ..ptx.wgmma import CHUNK
from .shape import MASK_BYTES, padded
from .statistics import PAIR_BYTES

__all__ = ["GradientShape", "gradient_shapes"]

_ROW_BYTES = CHUNK * 2
#: Shared memory of a block.
_MOST_SHARED_BYTES = 227 << 10
#: Rows of the other matrices a step, and how many steps lie in shared memory, where they fit. On an H200,
#: float16, 16 heads of 16,384 dense tokens, gradients of queries: with 128 rows 3.06 instead of 2.71 ms at
#: head dimension 64, and at 128 registers do not hold them; with two stages 6.12 instead of 5.08 ms at 128.
#: Eight stages are no faster.
_COLUMNS, _STAGES = 64, 4
#: Columns of both gradients of keys that 240 registers hold beside scores and products of 64 queries.
_MOST_COLUMNS = 256
#: And where scores are changed. At 256, ALiBi, the least of changes, has 12 bytes spilled.
_MOST_COLUMNS_CHANGED = 192
#: Head dimension beside whose gradients registers hold the derivatives of functions for steps of 64 keys.
_WIDEST_OF_FUNCTIONS = 96


@dataclass(frozen=True)
class GradientShape:
    """Compile-time numbers of a kernel.

    Attributes
    ----------
    kind : {"float16", "bfloat16"}
    depth, width : int
        Head and value dimension, rounded up.
    of_keys : bool
        Whether items are keys, and not queries.
    first, second : bool
        Which results there are: dq or dk; dv.
    columns : int
        Rows of the other matrices a step, the columns of scores.
    stages : int
        Steps that lie in shared memory at a time; a power of two.
    masked : bool
        Whether some tiles are partial.
    negate : bool
        Whether the scale is negative: then scores are negated and the kernel's factor is positive.
    changes : tuple
        What scores go through: see ``device/tile_changes.py``.
    """

    kind: str
    depth: int
    width: int
    of_keys: bool
    first: bool
    second: bool
    columns: int
    stages: int
    masked: bool
    negate: bool
    changes: tuple[Any, ...] = ()

    @property
    def steps(self) -> int:
        """Steps that a tile takes."""
        return TILE // self.columns

    @property
    def depth_chunks(self) -> int:
        """Chunks of the head dimension."""
        return -(-self.depth // CHUNK)

    @property
    def width_chunks(self) -> int:
        """Chunks of the value dimension."""
        return -(-self.width // CHUNK)

    @property
    def item_chunk(self) -> int:
        """Bytes of 64 columns of half an item's rows."""
        return TILE // 2 * _ROW_BYTES

    @property
    def step_chunk(self) -> int:
        """Bytes of 64 columns of a step's rows."""
        return self.columns * _ROW_BYTES

    @property
    def half_bytes(self) -> int:
        """Bytes of half an item's rows; the second matrix is needed for the first result only."""
        return (self.depth_chunks + (self.width_chunks if self.first else 0)) * self.item_chunk

    @property
    def item_bytes(self) -> int:
        """Bytes of an item's rows."""
        return 2 * self.half_bytes

    @property
    def step_bytes(self) -> int:
        """Bytes of a step's rows."""
        return (self.depth_chunks + self.width_chunks) * self.step_chunk

    @property
    def pair_bytes(self) -> int:
        """Bytes of a step's statistics."""
        return self.columns * PAIR_BYTES if self.of_keys else 0

    @property
    def pairs_at(self) -> int:
        """Offset of the stages' statistics in shared memory, behind an item's rows and the stages'."""
        return self.item_bytes + self.stages * self.step_bytes

    @property
    def masks_at(self) -> int:
        """Offset of the stages' masks."""
        return self.pairs_at + self.stages * self.pair_bytes

    @property
    def barriers_at(self) -> int:
        """Offset of the barriers, two for either half of an item, two for a stage; then of the stages' flags,
        and of their first rows and heads if scores are changed.
        """
        return self.masks_at + (self.stages * MASK_BYTES if self.masked else 0)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block; the swizzle wants it aligned to 1024, which nobody promises."""
        words = 3 if self.changes else 1
        return self.barriers_at + 32 + (16 + 4 * words) * self.stages + 1024


def gradient_shapes(
    kind: str,
    head_dim: int,
    value_dim: int,
    *,
    of_keys: bool,
    masked: bool,
    negate: bool,
    changes: tuple[Any, ...] = (),
) -> tuple[GradientShape, ...]:
    """The kernels of a pass, one or, if registers do not hold both gradients of keys, two.

    Examples
    --------
    >>> (shape,) = gradient_shapes("float16", 80, 80, of_keys=True, masked=True, negate=False)
    >>> shape.depth, shape.columns, shape.shared_bytes <= 227 << 10
    (96, 64, True)
    >>> wide = gradient_shapes("float16", 256, 256, of_keys=True, masked=True, negate=False)
    >>> [(shape.first, shape.second) for shape in wide]
    [(True, False), (False, True)]
    """
    depth, width = padded(head_dim), padded(value_dim)
    if not of_keys:
        results = [(True, False)]
    elif depth + width <= (_MOST_COLUMNS_CHANGED if changes else _MOST_COLUMNS):
        results = [(True, True)]
    else:
        results = [(True, False), (False, True)]
    return tuple(
        _fitting(kind, depth, width, of_keys, first, second, masked, negate, changes)
        for first, second in results
    )


def _fitting(
    kind: str,
    depth: int,
    width: int,
    of_keys: bool,
    first: bool,
    second: bool,
    masked: bool,
    negate: bool,
    changes: tuple[Any, ...],
) -> GradientShape:
    """As many columns a step and as many stages as shared memory holds."""
    columns, stages = _COLUMNS, _STAGES
    if not of_keys and depth > _WIDEST_OF_FUNCTIONS and any(change[0] == "modify" for change in changes):
        columns //= 2
    while True:
        sizes = depth, width, of_keys, first, second, columns, stages
        shape = GradientShape(kind, *sizes, masked, negate, changes)
        if shape.shared_bytes <= _MOST_SHARED_BYTES:
            return shape
        if stages > 2:
            stages //= 2
        else:
            columns //= 2
