"""What the kernels without Hopper's instructions are compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ...formats.tiles import TILE
from .statistics import PAIR_BYTES

__all__ = ["FragmentShape", "GradientShape", "fragment_shape", "gradient_shapes"]

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
#: Changes of scores of which one fits beside these. Beside others, or several, up to 128, shorter steps or 16
#: rows a warp do.
_LIGHT_CHANGES = ("alibi", "softcap")
_CHANGED_BLOCKINGS = _BLOCKINGS | {64: _Blocking(2, 32, 4, True), 128: _Blocking(1, 64, 3, True)}


def _padded(head_dim: int, value_dim: int) -> tuple[int, int, int]:
    """Both dimensions as kernels have them, and the wider of the two as tables have it."""
    depth, width = (-(-dimension // _ROUNDING) * _ROUNDING for dimension in (head_dim, value_dim))
    return depth, width, -(-max(depth, width) // 64) * 64


def _row_bytes(dimension: int) -> int:
    """Bytes of a row in shared memory."""
    return -(-dimension * 2 // _LINE) * _LINE


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
    changes : tuple
        What scores go through: see ``device/tile_changes.py``.
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
    changes: tuple[Any, ...] = ()

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
        return _row_bytes(self.depth)

    @property
    def value_row(self) -> int:
        """Bytes of a row of values."""
        return _row_bytes(self.width)

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


def fragment_shape(
    kind: str, head_dim: int, value_dim: int, *, masked: bool, negate: bool, changes: tuple[Any, ...] = ()
) -> FragmentShape:
    """The kernel for a kind of call.

    Examples
    --------
    >>> shape = fragment_shape("float16", 80, 80, masked=True, negate=False)
    >>> shape.depth, shape.threads, shape.shared_bytes <= 99 << 10
    (96, 128, True)
    """
    depth, width, widest = _padded(head_dim, value_dim)
    blockings = _BLOCKINGS if _is_light(changes, _LIGHT_CHANGES) else _CHANGED_BLOCKINGS
    return FragmentShape(kind, depth, width, *blockings[widest], masked, negate, changes)


def _is_light(changes: tuple[Any, ...], light: tuple[str, ...]) -> bool:
    """Whether scores go through no more than one of these steps."""
    return len(changes) < 2 and all(change[0] in light for change in changes)


class _Gradients(NamedTuple):
    """How a block of the backward pass shares its rows, and how the others pass through shared memory."""

    #: Rows of a block: a tile's or half of them.
    rows: int
    #: Times 16 rows that a warp has.
    row_tiles: int
    #: Others a step, of which there are two steps in shared memory.
    columns: int
    #: Whether own rows stay in registers.
    stay: bool


#: By the wider of the two dimensions, as above: dq, and then dk and dv. Warps of 32 rows that add up both
#: dk and dv leave too few registers for the scores of 32 others. Reasoned, not measured.
_BY_QUERIES = {
    64: _Gradients(128, 2, 32, True),
    128: _Gradients(128, 1, 32, True),
    192: _Gradients(64, 1, 32, False),
    256: _Gradients(64, 1, 16, False),
}
_BY_KEYS = {
    64: _Gradients(128, 1, 64, True),
    128: _Gradients(128, 1, 32, False),
    192: _Gradients(64, 1, 32, False),
    256: _Gradients(64, 1, 16, False),
}
#: The same for changed scores: with derivatives, or after several steps, half as many others a step.
_LIGHT_CHANGES_OF_GRADIENTS = ("alibi", "relative")
#: Columns of dk and dv that a thread's registers hold at a time; beyond that, each has a launch of its own,
#: which costs a second product with q.
_MOST_SUMS = 256


@dataclass(frozen=True)
class GradientShape:
    """Compile-time numbers of a backward kernel; see ``backward_sm80.py`` for own rows and others.

    Attributes
    ----------
    kind : {"float16", "bfloat16"}
    depth, width : int
        Head and value dimension, rounded up: of a row's first and of its second part.
    by_keys : bool
        Whether own rows are keys: the gradients are dk and dv instead of dq.
    first, second : bool
        Which gradients are wanted: dq or dk, and dv.
    rows, row_tiles, columns : int
    stay : bool
    masked : bool
        Whether some tiles are partial.
    negate : bool
        Whether the scale is negative: then q is negated, or k by keys, and the kernel's scale is positive.
    changes : tuple
        What scores go through: see ``device/tile_changes.py``.
    """

    kind: str
    depth: int
    width: int
    by_keys: bool
    first: bool
    second: bool
    rows: int
    row_tiles: int
    columns: int
    stay: bool
    masked: bool
    negate: bool
    changes: tuple[Any, ...] = ()

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.rows // (16 * self.row_tiles)

    @property
    def blocks_a_tile(self) -> int:
        """Blocks that share a tile's rows."""
        return TILE // self.rows

    @property
    def steps(self) -> int:
        """Steps that a tile takes."""
        return TILE // self.columns

    @property
    def first_row(self) -> int:
        """Bytes of a row's first part in shared memory."""
        return _row_bytes(self.depth)

    @property
    def second_row(self) -> int:
        """Bytes of a row's second part."""
        return _row_bytes(self.width)

    @property
    def result_row(self) -> int:
        """Bytes of a row of gradients, which lie where own rows lay."""
        return max(self.first_row, self.second_row)

    @property
    def own_second_at(self) -> int:
        """Offset of the second part of own rows, behind the first."""
        return self.rows * self.first_row

    @property
    def ring_at(self) -> int:
        """Offset of the others. The second part of own rows is needed for the first gradient only."""
        return self.own_second_at + (self.rows * self.second_row if self.first else 0)

    @property
    def buffer(self) -> int:
        """Bytes of a step's others; by keys, with a pair of statistics each."""
        return self.columns * (self.first_row + self.second_row + (PAIR_BYTES if self.by_keys else 0))

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, with what it may take to begin at a multiple of 128."""
        return max(self.ring_at + 2 * self.buffer, self.rows * self.result_row) + _LINE


def gradient_shapes(
    kind: str, head_dim: int, value_dim: int, *, masked: bool, negate: bool, changes: tuple[Any, ...] = ()
) -> tuple[GradientShape, ...]:
    """The kernels for a kind of call: dq, then dk and dv, together or one after the other.

    Examples
    --------
    >>> shapes = gradient_shapes("float16", 128, 80, masked=True, negate=False)
    >>> [(shape.by_keys, shape.first, shape.second) for shape in shapes]
    [(False, True, False), (True, True, True)]
    >>> shapes = gradient_shapes("float16", 192, 128, masked=True, negate=False)
    >>> [(shape.by_keys, shape.first, shape.second) for shape in shapes]
    [(False, True, False), (True, True, False), (True, False, True)]
    """
    depth, width, widest = _padded(head_dim, value_dim)
    of_keys = [(True, True)] if depth + width <= _MOST_SUMS else [(True, False), (False, True)]
    by_queries, by_keys = _BY_QUERIES[widest], _BY_KEYS[widest]
    if not _is_light(changes, _LIGHT_CHANGES_OF_GRADIENTS):
        by_queries, by_keys = (
            blocking._replace(columns=max(16, blocking.columns // 2)) for blocking in (by_queries, by_keys)
        )
    return (
        GradientShape(kind, depth, width, False, True, False, *by_queries, masked, negate, changes),
        *(
            GradientShape(kind, depth, width, True, first, second, *by_keys, masked, negate, changes)
            for first, second in of_keys
        ),
    )
