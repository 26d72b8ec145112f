"""Lists of the rows that a panel works on: which keys its queries see, or which queries see its keys.

A list is memory of ``LIST_WORDS`` int64. It has CAPACITY entries and room for ROWS more; an entry is
one address in each of up to COLUMNS matrices and a lane mask, whose bit b says whether lane b of the
panel sees the row. After them come the number of entries and, not 0 if so, whether some lane does not
see some entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..formats.tiles import TILE, WORDS
from .products import ROWS, VECTORS
from .vector import (
    INT1,
    INT32,
    INT64,
    VOID,
    constant,
    element_type,
    fold,
    lanes,
    load,
    outlined,
    pointer,
    shifted,
    splat,
    store,
    strided,
)

__all__ = [
    "CAPACITY",
    "COLUMN",
    "LIST_WORDS",
    "MASKS",
    "MASK_ROW",
    "append_all",
    "append_seen_columns",
    "append_seen_rows",
    "clear_list",
    "count_seen_columns",
    "count_seen_rows",
    "is_masked",
    "list_length",
    "read_int32",
    "read_int64",
]

#: Rows that are collected before they are worked off: with 128, their weights (16 KB) and a matrix
#: (32 KB at d 64) stay in the first-level cache.
CAPACITY = TILE
#: Matrices that an entry can have addresses in.
COLUMNS = 4
#: Bytes from the addresses in one matrix to those in the next.
COLUMN = 8 * (CAPACITY + ROWS)
#: Byte offset of the lane masks.
MASKS = COLUMNS * COLUMN
#: Bytes of a row of a mask in the pool.
MASK_ROW = 8 * WORDS
_LENGTH = MASKS + COLUMN
_MASKED = _LENGTH + 8
LIST_WORDS = (_MASKED + 8) // 8

#: Entries that are written at a time where all rows of a tile are.
_BATCH = 8


def _make_read(kind: ir.Type) -> Callable[..., Any]:
    def generate(context, builder, signature, arguments):
        size = ir.Constant(INT64, kind.width // 8)
        place = pointer(builder, arguments[0], builder.mul(arguments[1], size))
        return builder.sext(load(builder, kind, place), INT64)

    return generate


@intrinsic
def read_int32(typing_context, address, index):
    """Element of an int32 array that begins at an address."""
    return types.int64(types.int64, types.int64), _make_read(INT32)


@intrinsic
def read_int64(typing_context, address, index):
    """Element of an int64 array that begins at an address."""
    return types.int64(types.int64, types.int64), _make_read(INT64)


@intrinsic
def clear_list(typing_context, entries):
    """Make a list empty."""

    def generate(context, builder, signature, arguments):
        for offset in (_LENGTH, _MASKED):
            store(builder, ir.Constant(INT64, 0), pointer(builder, arguments[0], offset))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def list_length(typing_context, entries):
    """Number of entries."""

    def generate(context, builder, signature, arguments):
        return load(builder, INT64, pointer(builder, arguments[0], _LENGTH))

    return types.int64(types.int64), generate


@intrinsic
def is_masked(typing_context, entries):
    """Whether some lane does not see some entry."""

    def generate(context, builder, signature, arguments):
        flag = load(builder, INT64, pointer(builder, arguments[0], _MASKED))
        return builder.icmp_signed("!=", flag, ir.Constant(INT64, 0))

    return types.boolean(types.int64), generate


def _unpacked(builder: ir.IRBuilder, arguments: Sequence[Any]) -> list[Any]:
    """Arguments with tuples taken apart."""
    flat: list[Any] = []
    for value in arguments:
        flat += cgutils.unpack_tuple(builder, value) if isinstance(value.type, ir.Aggregate) else [value]
    return flat


def _write_entry(
    builder: ir.IRBuilder, place: Any, row: Any, bases: Sequence[Any], strides: Sequence[Any], lane_mask: Any
) -> None:
    """Entry at `place` for one row of the matrices."""
    for column, (base, stride) in enumerate(zip(bases, strides, strict=True)):
        address = builder.add(base, builder.mul(row, stride))
        store(builder, address, shifted(builder, place, column * COLUMN))
    store(builder, lane_mask, shifted(builder, place, MASKS))


@intrinsic
def append_all(typing_context, entries, bases, strides):
    """Append all rows of a tile; its first row lies at `bases` (one a matrix), strides are in bytes."""

    def generate(context, builder, signature, arguments):
        columns = len(signature.args[1])

        def body(builder, arguments):
            entries = pointer(builder, arguments[0])
            bases, strides = arguments[1 : 1 + columns], arguments[1 + columns :]
            length = load(builder, INT64, shifted(builder, entries, _LENGTH))
            begin = strided(builder, entries, length, 8)
            kind = ir.VectorType(INT64, _BATCH)
            steps = ir.Constant(kind, list(range(_BATCH)))
            offsets = [builder.mul(splat(builder, stride, _BATCH), steps) for stride in strides]

            def step(index, _):
                place = strided(builder, begin, index, 8)
                for column in range(columns):
                    first = builder.add(bases[column], builder.mul(index, strides[column]))
                    addresses = builder.add(splat(builder, first, _BATCH), offsets[column])
                    store(builder, addresses, shifted(builder, place, column * COLUMN))
                store(builder, constant(kind, -1), shifted(builder, place, MASKS))
                return []

            fold(builder, 0, ir.Constant(INT64, TILE), _BATCH, [], step)
            store(builder, builder.add(length, ir.Constant(INT64, TILE)), shifted(builder, entries, _LENGTH))

        outlined(builder, f"append_all.{columns}", _unpacked(builder, arguments), VOID, body)
        return context.get_dummy_value()

    return types.void(types.int64, bases, strides), generate


def _close(builder: ir.IRBuilder, entries: Any, length: Any, missing: Any) -> None:
    """Note the new length and whether lanes were missing."""
    store(builder, length, shifted(builder, entries, _LENGTH))
    place = shifted(builder, entries, _MASKED)
    store(builder, builder.or_(load(builder, INT64, place), builder.zext(missing, INT64)), place)


def _lane_words(builder: ir.IRBuilder, count: int, masks: Any) -> list[Any]:
    """For each word of a mask row, that word of `count` rows as the lanes of a vector."""
    kind = ir.VectorType(INT64, WORDS * count)
    rows = load(builder, kind, masks)
    nothing = ir.Constant(kind, ir.Undefined)
    index = ir.VectorType(INT32, count)
    return [
        builder.shuffle_vector(rows, nothing, ir.Constant(index, [WORDS * i + word for i in range(count)]))
        for word in range(WORDS)
    ]


def _union(builder: ir.IRBuilder, words: Any) -> Any:
    """OR of the lanes of an integer vector."""
    name = f"llvm.vector.reduce.or.v{words.type.count}i64"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(INT64, [words.type]), name)
    return builder.call(function, [words])


def _panel(like: types.Array) -> int:
    return VECTORS * lanes(element_type(like))


@intrinsic
def count_seen_columns(typing_context, like, masks):
    """How many columns of a mask some lane sees; the panel's rows of the mask begin at `masks`."""

    def generate(context, builder, signature, arguments):
        panel = _panel(signature.args[0])

        def body(builder, arguments):
            total = ir.Constant(INT64, 0)
            for words in _lane_words(builder, panel, pointer(builder, arguments[0])):
                total = builder.add(total, builder.ctpop(_union(builder, words)))
            return total

        return outlined(builder, f"count_seen_columns.{panel}", arguments[1:], INT64, body)

    return types.int64(like, types.int64), generate


@intrinsic
def append_seen_columns(typing_context, like, entries, masks, bases, strides):
    """Append the columns of a mask that some lane sees, where the lanes are rows of the mask."""

    def generate(context, builder, signature, arguments):
        panel, columns = _panel(signature.args[0]), len(signature.args[3])

        def body(builder, arguments):
            entries, masks = (pointer(builder, address) for address in arguments[:2])
            bases, strides = arguments[2 : 2 + columns], arguments[2 + columns :]
            length = load(builder, INT64, shifted(builder, entries, _LENGTH))
            missing: Any = ir.Constant(ir.IntType(panel), 0)
            for word, words in enumerate(_lane_words(builder, panel, masks)):

                def step(index, values, word=word, words=words):
                    left, missing = values
                    lowest = builder.and_(left, builder.neg(left))
                    found = builder.and_(words, splat(builder, lowest, panel))
                    chosen = builder.icmp_unsigned("!=", found, constant(found.type, 0))
                    chosen = builder.bitcast(chosen, missing.type)
                    row = builder.cttz(left, ir.Constant(INT1, 1))
                    row = builder.add(row, ir.Constant(INT64, 64 * word))
                    place = strided(builder, entries, index, 8)
                    _write_entry(builder, place, row, bases, strides, builder.zext(chosen, INT64))
                    return [builder.xor(left, lowest), builder.or_(missing, builder.not_(chosen))]

                union = _union(builder, words)
                end = builder.add(length, builder.ctpop(union))
                _, missing = fold(builder, length, end, 1, [union, missing], step)
                length = end
            _close(builder, entries, length, missing)

        name = f"append_seen_columns.{panel}.{columns}"
        outlined(builder, name, _unpacked(builder, arguments[1:]), VOID, body)
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64, bases, strides), generate


def _row_lanes(builder: ir.IRBuilder, panel: int, masks: Any, first_lane: Any, row: Any) -> Any:
    """Bits ``first_lane, ..., first_lane + panel - 1`` of a row of a mask."""
    word = builder.lshr(first_lane, ir.Constant(INT64, 6))
    place = strided(builder, strided(builder, masks, row, MASK_ROW), word, 8)
    bits = load(builder, INT64, place)
    bits = builder.lshr(bits, builder.and_(first_lane, ir.Constant(INT64, 63)))
    return builder.trunc(bits, ir.IntType(panel))


@intrinsic
def count_seen_rows(typing_context, like, masks, first_lane):
    """How many rows of a mask some lane sees; the panel's columns of the mask begin at `first_lane`."""

    def generate(context, builder, signature, arguments):
        panel = _panel(signature.args[0])

        def body(builder, arguments):
            masks = pointer(builder, arguments[0])

            def step(row, values):
                bits = _row_lanes(builder, panel, masks, arguments[1], row)
                seen = builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))
                return [builder.add(values[0], builder.zext(seen, INT64))]

            return fold(builder, 0, ir.Constant(INT64, TILE), 1, [ir.Constant(INT64, 0)], step)[0]

        return outlined(builder, f"count_seen_rows.{panel}", arguments[1:], INT64, body)

    return types.int64(like, types.int64, types.int64), generate


@intrinsic
def append_seen_rows(typing_context, like, entries, masks, first_lane, bases, strides):
    """Append the rows of a mask that some lane sees, where the lanes are columns of the mask."""

    def generate(context, builder, signature, arguments):
        panel, columns = _panel(signature.args[0]), len(signature.args[4])

        def body(builder, arguments):
            entries, masks = (pointer(builder, address) for address in arguments[:2])
            first_lane = arguments[2]
            bases, strides = arguments[3 : 3 + columns], arguments[3 + columns :]

            def step(row, values):
                length, missing = values
                bits = _row_lanes(builder, panel, masks, first_lane, row)
                nothing = ir.Constant(bits.type, 0)
                seen = builder.icmp_unsigned("!=", bits, nothing)
                # Written in any case: what no lane sees is overwritten by the next entry.
                place = strided(builder, entries, length, 8)
                _write_entry(builder, place, row, bases, strides, builder.zext(bits, INT64))
                missing = builder.or_(missing, builder.select(seen, builder.not_(bits), nothing))
                return [builder.add(length, builder.zext(seen, INT64)), missing]

            length = load(builder, INT64, shifted(builder, entries, _LENGTH))
            begin = [length, ir.Constant(ir.IntType(panel), 0)]
            length, missing = fold(builder, 0, ir.Constant(INT64, TILE), 1, begin, step)
            _close(builder, entries, length, missing)

        name = f"append_seen_rows.{panel}.{columns}"
        outlined(builder, name, _unpacked(builder, arguments[1:]), VOID, body)
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64, types.int64, bases, strides), generate
