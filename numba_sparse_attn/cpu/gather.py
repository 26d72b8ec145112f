"""Products of one row with rows that are scattered in memory, as explicit vector code.

The two halves of attention over the listed pairs of one query: scores are dot products with the key
rows that a list names, and the output is a weighted sum of value rows. The backward pass is written
from the same two.

Conventions. Rows are named by lists of int64 addresses, plus an offset in bytes that is common to all
of them. They hold elements of one float type, side by side and padded with zeros to whole vectors, so
sizes of rows are counted in vectors. The first argument of an intrinsic, `like`, is any float32 or
float64 array and decides the type of the computation; addresses and counts are int64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .vector import (
    INT32,
    INT64,
    VOID,
    constant,
    element_bytes,
    element_type,
    exp2_ir,
    fmuladd,
    fold,
    load,
    outlined,
    pointer,
    shifted,
    splat,
    store,
    sweep,
    vector_bytes,
    vector_of,
)

__all__ = ["GROUP", "gather_axpy", "gather_dot", "gather_elements", "list_rows", "multiply", "probabilities"]

#: Rows that :func:`gather_dot` takes at a time: as many sums as hide the latency of an addition.
#: Lists have room for this many addresses more than they name.
GROUP = 8

#: Vectors of the result that :func:`gather_axpy` keeps in registers during one walk over the rows.
_WIDEST_BLOCK = 8


@intrinsic
def list_rows(
    typing_context: Any,
    indices: Any,
    index_bytes: Any,
    first: Any,
    count: Any,
    base: Any,
    stride: Any,
    target: Any,
) -> Any:
    """List the addresses ``base + stride * indices[first + i]`` of `count` >= 1 rows at `target`.

    `indices` is the address of integers of 4 or 8 bytes. With 4, the stride must fit into 32 bits as
    well: one 32-bit product of two signed numbers is an instruction, a 64-bit product is five. The last
    address is repeated `GROUP` times, which makes the list end with a whole group.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def body(builder: Any, arguments: Any) -> None:
            indices, index_bytes, first, count, base, stride, target = arguments
            target = pointer(builder, target)

            def write(width: int) -> None:
                index = ir.IntType(8 * width)
                factor = builder.sext(builder.trunc(stride, index), INT64) if width == 4 else stride
                source = pointer(builder, indices, _times(builder, first, width))

                def several(lanes: int) -> Any:
                    def addresses(place: Any, _: Any) -> Sequence[Any]:
                        kind = ir.VectorType(index, lanes)
                        keys = load(builder, kind, shifted(builder, source, _times(builder, place, width)))
                        if width == 4:
                            keys = builder.sext(keys, ir.VectorType(INT64, lanes))
                        bases, factors = (splat(builder, value, lanes) for value in (base, factor))
                        rows = builder.add(bases, builder.mul(keys, factors))
                        store(builder, rows, shifted(builder, target, _times(builder, place, 8)))
                        return []

                    return addresses

                rest = builder.srem(count, ir.Constant(INT64, GROUP))
                whole = builder.sub(count, rest)
                fold(builder, 0, whole, GROUP, [], several(GROUP))
                fold(builder, whole, count, 1, [], several(1))

            _by_width(builder, index_bytes, write)
            end = shifted(builder, target, _times(builder, count, 8))
            last = load(builder, INT64, shifted(builder, end, -8))
            store(builder, splat(builder, last, GROUP), end)

        outlined(builder, "list_rows", arguments, VOID, body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


@intrinsic
def gather_dot(
    typing_context: Any,
    like: Any,
    query: Any,
    rows: Any,
    offset: Any,
    count: Any,
    vectors: Any,
    target: Any,
) -> Any:
    """target[i] = sum over j of query[j] * row[i][j].

    `query` and `target` are addresses, `rows` is that of the list. Rows are taken in whole groups: the
    target has room for them. What is added up in which order is the same for every place in a group
    and for either factor in either role: a key's list gives the same bits as a query's.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = element_type(signature.args[0])
        kind = vector_of(element)

        def body(builder: Any, arguments: Any) -> None:
            query, rows, offset, count, vectors, target = arguments
            query, rows, target = (pointer(builder, address) for address in (query, rows, target))

            def group(first: Any, _: Any) -> Sequence[Any]:
                starts = _row_pointers(builder, rows, first, GROUP, offset)

                def step(index: Any, sums: Any) -> Sequence[Any]:
                    place = _times(builder, index, vector_bytes())
                    left = load(builder, kind, shifted(builder, query, place))
                    right = [load(builder, kind, shifted(builder, start, place)) for start in starts]
                    return [fmuladd(builder, left, r, s) for r, s in zip(right, sums, strict=True)]

                sums = fold(builder, 0, vectors, 1, [constant(kind, 0.0)] * GROUP, step)
                place = shifted(builder, target, _times(builder, first, element_bytes(element)))
                for result in _sum_each(builder, sums):
                    store(builder, result, place)
                    place = shifted(builder, place, result.type.count * element_bytes(element))
                return []

            fold(builder, 0, count, GROUP, [], group)

        outlined(builder, f"gather_dot.{element}", arguments[1:], VOID, body)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 6), generate


@intrinsic
def gather_axpy(
    typing_context: Any,
    like: Any,
    weights: Any,
    rows: Any,
    offset: Any,
    count: Any,
    vectors: Any,
    target: Any,
) -> Any:
    """target[j] += sum over i of weights[i] * row[i][j].

    Arguments as of :func:`gather_dot`, with the address of the weights in place of the query's. The
    sum over the rows of one call is formed apart from what the target holds: a long row that is
    handled in pieces has the rounding errors of a blocked sum.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = element_type(signature.args[0])

        def body(builder: Any, arguments: Any) -> None:
            weights, rows, offset, count, vectors, target = arguments
            weights, rows, target = (pointer(builder, address) for address in (weights, rows, target))

            def block(first: Any, width: int) -> None:
                start = _times(builder, first, vector_bytes())
                place = shifted(builder, target, start)
                start = builder.add(offset, start)
                _axpy_block(builder, element, weights, rows, start, count, place, width)

            def widest(first: Any, _: Any) -> Sequence[Any]:
                block(first, _WIDEST_BLOCK)
                return []

            rest = builder.srem(vectors, ir.Constant(INT64, _WIDEST_BLOCK))
            fold(builder, 0, builder.sub(vectors, rest), _WIDEST_BLOCK, [], widest)
            width = _WIDEST_BLOCK // 2
            while width:
                bit = builder.and_(vectors, ir.Constant(INT64, width))
                with builder.if_then(builder.icmp_signed("!=", bit, ir.Constant(INT64, 0))):
                    block(builder.and_(vectors, ir.Constant(INT64, -2 * width)), width)
                width //= 2

        outlined(builder, f"gather_axpy.{element}", arguments[1:], VOID, body)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 6), generate


@intrinsic
def gather_elements(
    typing_context: Any,
    like: Any,
    source: Any,
    indices: Any,
    index_bytes: Any,
    first: Any,
    count: Any,
    target: Any,
) -> Any:
    """target[i] = source[indices[first + i]]; indices as of :func:`list_rows`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = element_type(signature.args[0])
        size = element_bytes(element)

        def body(builder: Any, arguments: Any) -> None:
            source, indices, index_bytes, first, count, target = arguments
            source, target = pointer(builder, source), pointer(builder, target)

            def copy(width: int) -> None:
                names = pointer(builder, indices, _times(builder, first, width))

                def one(place: Any, _: Any) -> Sequence[Any]:
                    name = load(
                        builder, ir.IntType(8 * width), shifted(builder, names, _times(builder, place, width))
                    )
                    name = builder.sext(name, INT64)
                    value = load(builder, element, shifted(builder, source, _times(builder, name, size)))
                    store(builder, value, shifted(builder, target, _times(builder, place, size)))
                    return []

                fold(builder, 0, count, 1, [], one)

            _by_width(builder, index_bytes, copy)

        outlined(builder, f"gather_elements.{element}", arguments[1:], VOID, body)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 6), generate


@intrinsic
def probabilities(
    typing_context: Any,
    like: Any,
    scores: Any,
    products: Any,
    shifts: Any,
    deltas: Any,
    factor: Any,
    count: Any,
) -> Any:
    """scores[i] = p, products[i] = p * (products[i] - deltas[i]) with p = 2^(scores[i] * factor - shifts[i]).

    All four are addresses. A probability is at most 1, so what rounding lets the exponent rise above 0
    is cut off.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = element_type(signature.args[0])

        def body(builder: Any, arguments: Any) -> None:
            scores, products, shifts, deltas = (pointer(builder, address) for address in arguments[:4])
            factor, count = arguments[4:]

            def step(kind: Any, place: Any, _: Any) -> None:
                score, product, shift, delta = (
                    load(builder, kind, shifted(builder, base, place))
                    for base in (scores, products, shifts, deltas)
                )
                factors = factor if kind is element else splat(builder, factor, kind.count)
                exponent = fmuladd(builder, score, factors, builder.fneg(shift))
                zero = constant(kind, 0.0)
                exponent = builder.select(builder.fcmp_ordered(">", exponent, zero), zero, exponent)
                probability = exp2_ir(builder, exponent, bounded=True)
                store(builder, probability, shifted(builder, scores, place))
                gradient = builder.fmul(probability, builder.fsub(product, delta))
                store(builder, gradient, shifted(builder, products, place))

            sweep(builder, element, count, None, None, step)

        outlined(builder, f"probabilities.{element}", arguments[1:], VOID, body)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 4, like.dtype, types.int64), generate


@intrinsic
def multiply(typing_context: Any, like: Any, target: Any, count: Any, factor: Any) -> Any:
    """target[i] *= factor over `count` elements at an address.

    As a loop over an array LLVM leaves this in scalars: every index might be negative and so count
    from the end.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = element_type(signature.args[0])

        def body(builder: Any, arguments: Any) -> None:
            target, factor = pointer(builder, arguments[0]), arguments[2]

            def step(kind: Any, offset: Any, _: Any) -> None:
                factors = factor if kind is element else splat(builder, factor, kind.count)
                place = shifted(builder, target, offset)
                store(builder, builder.fmul(load(builder, kind, place), factors), place)

            sweep(builder, element, arguments[1], None, None, step)

        outlined(builder, f"multiply.{element}", arguments[1:], VOID, body)
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64, like.dtype), generate


def _times(builder: Any, value: Any, factor: int) -> Any:
    return builder.mul(value, ir.Constant(INT64, factor))


def _by_width(builder: Any, index_bytes: Any, generate: Callable[[int], None]) -> None:
    """Code for indices of 4 bytes and for indices of 8."""
    narrow = builder.icmp_signed("==", index_bytes, ir.Constant(INT64, 4))
    with builder.if_else(narrow) as (then, otherwise):
        with then:
            generate(4)
        with otherwise:
            generate(8)


def _row_pointers(builder: Any, rows: Any, first: Any, count: int, offset: Any) -> list[Any]:
    """Pointers into the `count` rows of a list from number `first` on."""
    place = shifted(builder, rows, _times(builder, first, 8))
    addresses = [load(builder, INT64, shifted(builder, place, 8 * i)) for i in range(count)]
    return [pointer(builder, address, offset) for address in addresses]


def _axpy_block(
    builder: Any,
    element: ir.Type,
    weights: Any,
    rows: Any,
    offset: Any,
    count: Any,
    target: Any,
    width: int,
) -> None:
    """`width` vectors of the result, in registers.

    Narrow blocks take several rows at a time, each with its own sums: eight chains of additions in
    all, as many as are needed to hide the latency of one.
    """
    kind = vector_of(element)
    size = element_bytes(element)
    together = _WIDEST_BLOCK // width

    def step(taken: int) -> Any:
        def add_rows(index: Any, sums: Sequence[Any]) -> Sequence[Any]:
            sums = list(sums)
            factors = shifted(builder, weights, _times(builder, index, size))
            for row, start in enumerate(_row_pointers(builder, rows, index, taken, offset)):
                factor = load(builder, element, shifted(builder, factors, row * size))
                factor = splat(builder, factor, kind.count)
                for i in range(width):
                    value = load(builder, kind, shifted(builder, start, i * vector_bytes()))
                    sums[row * width + i] = fmuladd(builder, factor, value, sums[row * width + i])
            return sums

        return add_rows

    rest = builder.srem(count, ir.Constant(INT64, together))
    whole = builder.sub(count, rest)
    sums = fold(builder, 0, whole, together, [constant(kind, 0.0)] * (together * width), step(together))
    while len(sums) > width:
        half = len(sums) // 2
        sums = [builder.fadd(a, b) for a, b in zip(sums[:half], sums[half:], strict=True)]
    if together > 1:
        sums = fold(builder, whole, count, 1, sums, step(1))
    for i, value in enumerate(sums):
        place = shifted(builder, target, i * vector_bytes())
        store(builder, builder.fadd(value, load(builder, kind, place)), place)


def _sum_each(builder: Any, vectors: list[Any]) -> list[Any]:
    """Sums of the lanes of each of several vectors, in order, packed into as few vectors as it takes.

    First inside of 16-byte pieces, then across pieces; every shuffle is one that has an instruction.
    """
    kind = vectors[0].type
    piece = 16 // element_bytes(kind.element)
    pieces = kind.count // piece

    def pick(left: Any, right: Any, lanes: list[int]) -> Any:
        return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(INT32, len(lanes)), lanes))

    def in_pieces(values: list[Any], *chosen: list[int]) -> list[Any]:
        """Join neighbors; `chosen` counts through a piece of the left, then of the right vector."""
        lanes = [
            [p * piece + c % piece + kind.count * (c // piece) for p in range(pieces) for c in choice]
            for choice in chosen
        ]
        pairs = zip(values[::2], values[1::2], strict=True)
        return [builder.fadd(*(pick(a, b, choice) for choice in lanes)) for a, b in pairs]

    if piece == 4:
        vectors = in_pieces(vectors, [0, 1, 4, 5], [2, 3, 6, 7])
        vectors = in_pieces(vectors, [0, 2, 4, 6], [1, 3, 5, 7])
    else:
        vectors = in_pieces(vectors, [0, 2], [1, 3])

    # From here on a vector is a sequence of segments, each with sums of the same rows in all its pieces.
    segments = 1

    def halves(count: int) -> list[list[int]]:
        """Lanes of the lower and of the upper halves of the segments of a vector of `count` lanes."""
        half = count // segments // 2
        return [[(2 * s + h) * half + lane for s in range(segments) for lane in range(half)] for h in (0, 1)]

    while segments < pieces and len(vectors) > 1:
        lanes = [
            low_or_high + [kind.count + lane for lane in low_or_high] for low_or_high in halves(kind.count)
        ]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [builder.fadd(*(pick(a, b, choice) for choice in lanes)) for a, b in pairs]
        segments *= 2
    while segments < pieces:
        (vector,) = vectors
        vectors = [builder.fadd(*(pick(vector, vector, choice) for choice in halves(vector.type.count)))]
        pieces //= 2
    return vectors
