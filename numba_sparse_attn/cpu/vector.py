"""Explicit SIMD for host kernels: LLVM vector code behind Numba intrinsics.

LLVM vectorises the simple loops of a Numba kernel by itself, but neither reductions (it may not
reorder float sums) nor ``exp2`` (there is no vector library without SVML), and it never blocks a
matrix product for registers. This file has the pieces that the kernels of the CPU engine are written
from: vectors of the width that the machine has, loops with carried values, an ``exp2`` of a dozen
instructions, and the row operations (dot product, ``y += factor * x``, maximum, exponentials with
their sum) as intrinsics.

Conventions. Memory is named by int64 addresses and needs no alignment beyond a byte. The first
argument of an intrinsic, `like`, is any float32 or float64 array: only its element type is used, and
it decides the type of the computation. Numba's own cache key holds the name and the features of the
CPU, so kernels compiled for one vector width are never loaded on another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

__all__ = [
    "INT1",
    "INT32",
    "INT64",
    "VOID",
    "add",
    "address_of",
    "any_lane",
    "axpy",
    "bits_to_lanes",
    "constant",
    "dot",
    "element_bytes",
    "element_type",
    "exp2_ir",
    "exp2_sum",
    "fill",
    "fmuladd",
    "fold",
    "has_non_finite",
    "horizontal",
    "lane_count",
    "lanes",
    "larger",
    "largest",
    "load",
    "outlined",
    "pointer",
    "shifted",
    "splat",
    "store",
    "strided",
    "sweep",
    "vector_bytes",
    "vector_of",
    "vector_registers",
]

INT64 = ir.IntType(64)
INT32 = ir.IntType(32)
INT1 = ir.IntType(1)
VOID = ir.VoidType()

_Values = list[Any]


@functools.cache
def _features() -> frozenset[str]:
    """Features of the machine that Numba compiles for, as they stand in its cache key."""
    return frozenset(cpu_target.target_context.codegen().magic_tuple()[2].split(","))


@functools.cache
def vector_bytes() -> int:
    """Bytes of the widest vector that the machine computes with."""
    if "+avx512f" in _features():
        return 64
    return 32 if "+avx" in _features() else 16


@functools.cache
def vector_registers() -> int:
    """Number of vector registers: 32, but 16 on x86 without AVX-512."""
    return 16 if "+sse2" in _features() and vector_bytes() < 64 else 32


def lane_count(dtype: Any) -> int:
    """Elements of float32 or float64 in one vector: the host's view of :func:`lanes`."""
    return vector_bytes() // np.dtype(dtype).itemsize


# --- pieces of IR ------------------------------------------------------------------------------


def element_type(like: types.Array) -> ir.Type:
    """LLVM type of the elements of a Numba array type."""
    return ir.FloatType() if like.dtype == types.float32 else ir.DoubleType()


def element_bytes(element: ir.Type) -> int:
    """Size of float or double."""
    return 4 if isinstance(element, ir.FloatType) else 8


def lanes(element: ir.Type) -> int:
    """Elements of `element` in one vector."""
    return vector_bytes() // element_bytes(element)


def vector_of(element: ir.Type) -> ir.VectorType:
    """The widest vector of `element`."""
    return ir.VectorType(element, lanes(element))


def _integers_like(kind: ir.Type) -> ir.Type:
    """Integers of the same size and count as the floats of `kind` (a scalar or a vector)."""
    if isinstance(kind, ir.VectorType):
        return ir.VectorType(ir.IntType(8 * element_bytes(kind.element)), kind.count)
    return ir.IntType(8 * element_bytes(kind))


def constant(kind: ir.Type, value: float) -> ir.Constant:
    """`value` as a scalar, or in every lane of a vector."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [value] * kind.count)
    return ir.Constant(kind, value)


def pointer(builder: ir.IRBuilder, address: Any, offset: Any = 0) -> Any:
    """Pointer from an int64 address and an offset in bytes (an int or an int64 value)."""
    base = builder.inttoptr(address, ir.PointerType())
    return shifted(builder, base, offset)


def shifted(builder: ir.IRBuilder, base: Any, offset: Any) -> Any:
    """`base` moved by `offset` bytes (an int or an int64 value)."""
    if isinstance(offset, int):
        if offset == 0:
            return base
        offset = ir.Constant(INT64, offset)
    return builder.gep(base, [offset], source_etype=ir.IntType(8))


def strided(builder: ir.IRBuilder, base: Any, index: Any, stride: int) -> Any:
    """`base` moved by `index` (an int64 value) times `stride` bytes."""
    return shifted(builder, base, builder.mul(index, ir.Constant(INT64, stride)))


def load(builder: ir.IRBuilder, kind: ir.Type, source: Any) -> Any:
    """Unaligned load of a scalar or a vector."""
    return builder.load(source, typ=kind, align=1)


def store(builder: ir.IRBuilder, value: Any, destination: Any) -> None:
    """Unaligned store of a scalar or a vector."""
    builder.store(value, destination, align=1)


def splat(builder: ir.IRBuilder, scalar: Any, count: int) -> Any:
    """`scalar` in every lane of a vector of `count` lanes."""
    kind = ir.VectorType(scalar.type, count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(INT32, 0))
    zeros = ir.Constant(ir.VectorType(INT32, count), [0] * count)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def fmuladd(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, fused where the machine can (``llvm.fma`` would call a library where it cannot)."""
    kind = a.type
    element = getattr(kind, "element", kind)
    count = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    name = f"llvm.fmuladd.{count}f{8 * element_bytes(element)}"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [a, b, c])


def larger(builder: ir.IRBuilder, best: Any, value: Any) -> Any:
    """`value` where it is larger than `best`, else `best`: a NaN in `value` is passed over."""
    return builder.select(builder.fcmp_ordered(">", value, best), value, best)


def horizontal(builder: ir.IRBuilder, value: Any, combine: Callable[..., Any]) -> Any:
    """Combine the lanes of a vector pairwise, halves first; a scalar is returned as it is."""
    if not isinstance(value.type, ir.VectorType):
        return value
    count = value.type.count
    while count > 1:
        count //= 2
        kind = ir.VectorType(INT32, count)
        nothing = ir.Constant(value.type, ir.Undefined)
        low = builder.shuffle_vector(value, nothing, ir.Constant(kind, list(range(count))))
        high = builder.shuffle_vector(value, nothing, ir.Constant(kind, list(range(count, 2 * count))))
        value = combine(builder, low, high)
    return builder.extract_element(value, ir.Constant(INT32, 0))


def add(builder: ir.IRBuilder, a: Any, b: Any) -> Any:
    """a + b, in the form that :func:`horizontal` takes."""
    return builder.fadd(a, b)


def bits_to_lanes(builder: ir.IRBuilder, bits: Any, first: int, count: int) -> Any:
    """Lane mask <count x i1> from bits ``first, ..., first + count - 1`` of an integer."""
    if first:
        bits = builder.lshr(bits, ir.Constant(bits.type, first))
    narrow = ir.IntType(count)
    if bits.type.width > count:
        bits = builder.trunc(bits, narrow)
    return builder.bitcast(bits, ir.VectorType(INT1, count))


def any_lane(builder: ir.IRBuilder, mask: Any) -> Any:
    """i1: whether a lane of the mask is set."""
    bits = builder.bitcast(mask, ir.IntType(mask.type.count))
    return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))


def fold(
    builder: ir.IRBuilder,
    begin: Any,
    end: Any,
    step: int,
    initial: Sequence[Any],
    body: Callable[[Any, _Values], Sequence[Any]],
) -> _Values:
    """``for index in range(begin, end, step): values = body(index, values)``; returns the values.

    The values live in registers (phi nodes). Nothing runs when begin >= end.
    """
    if isinstance(begin, int):
        begin = ir.Constant(INT64, begin)
    before = builder.basic_block
    loop = builder.append_basic_block("fold")
    after = builder.append_basic_block("folded")
    builder.cbranch(builder.icmp_signed("<", begin, end), loop, after)
    builder.position_at_end(loop)
    index = builder.phi(INT64)
    index.add_incoming(begin, before)
    carried = [builder.phi(value.type) for value in initial]
    for phi, value in zip(carried, initial, strict=True):
        phi.add_incoming(value, before)
    results = list(body(index, list(carried)))
    following = builder.add(index, ir.Constant(INT64, step))
    last = builder.basic_block
    index.add_incoming(following, last)
    for phi, value in zip(carried, results, strict=True):
        phi.add_incoming(value, last)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
    builder.position_at_end(after)
    final = [builder.phi(value.type) for value in initial]
    for phi, value, result in zip(final, initial, results, strict=True):
        phi.add_incoming(value, before)
        phi.add_incoming(result, last)
    return final


def sweep(
    builder: ir.IRBuilder,
    element: ir.Type,
    count: Any,
    initial: Any,
    combine: Callable[..., Any] | None,
    body: Callable[[ir.Type, Any, Any], Any],
    unroll: int = 1,
) -> Any:
    """Go through `count` elements, whole vectors first, then one by one, with one carried value.

    `body(kind, offset, value)` handles the scalar or vector `kind` at a byte `offset` and returns the
    new value. With `unroll` > 1 that many vectors are carried apart and combined at the end, which
    hides the latency of a chain of additions. Without a carried value, `initial` and `combine` are None.
    """
    vector = vector_of(element)
    size = ir.Constant(INT64, element_bytes(element))

    def run(begin: Any, kind: ir.Type, values: _Values) -> tuple[Any, _Values]:
        width = getattr(kind, "count", 1)
        parts = len(values) or 1
        step = ir.Constant(INT64, width * parts)
        end = builder.sub(count, builder.srem(builder.sub(count, begin), step))

        def block(index: Any, values: _Values) -> _Values:
            results = []
            for part in range(parts):
                place = builder.add(index, ir.Constant(INT64, part * width))
                results.append(body(kind, builder.mul(place, size), values[part] if values else None))
            return results if values else []

        return end, fold(builder, begin, end, width * parts, values, block)

    begin: Any = ir.Constant(INT64, 0)
    if combine is None:
        begin, _ = run(begin, vector, [])
        run(begin, element, [])
        return None
    begin, values = run(begin, vector, [splat(builder, initial, vector.count)] * unroll)
    while len(values) > 1:
        half = len(values) // 2
        values = [combine(builder, values[i], values[i + half]) for i in range(half)]
    if unroll > 1:
        begin, values = run(begin, vector, values)
    _, values = run(begin, element, [horizontal(builder, values[0], combine)])
    return values[0]


# Coefficients c1, c2, ... of 1 + c1 f + c2 f^2 + ...: minimax for the relative error of 2^f on
# [-1/2, 1/2], which is 2.6e-9 (float) and 1.8e-17 (double). c0 = 1 makes exp2 exact at integers.
_EXP2_FLOAT = (
    0.6931472149680278995,
    0.2402265278288773743,
    0.055503105510137971734,
    0.0096176929729930623181,
    0.0013406643902351759246,
    0.00015594678161326619324,
)
_EXP2_DOUBLE = (
    0.69314718055994569675,
    0.24022650695910098007,
    0.055504108664790394552,
    0.0096181291076070023796,
    0.0013333558153439964747,
    0.0001540353044157213033,
    0.000015252727385193868197,
    1.3215442675329822143e-6,
    1.0180647659234138888e-7,
    7.0725704128144235096e-9,
    4.078071929588336665e-10,
)


def exp2_ir(builder: ir.IRBuilder, x: Any, *, bounded: bool = False) -> Any:
    """2^x of a scalar or vector; NaN gives NaN, -inf and what would be subnormal give 0.

    The sum x + magic has round(x) + bias in its low bits: shifted into the exponent field they are
    the power of two, with 0 and inf at the two ends of the clamped range. `bounded` promises x <= 1
    (or NaN) and saves an instruction.
    """
    kind = x.type
    single = element_bytes(getattr(kind, "element", kind)) == 4
    mantissa, bias = (23, 127) if single else (52, 1023)
    lowest, highest = constant(kind, -float(bias)), constant(kind, float(bias + 1))
    # The comparisons are written so that a NaN in x is kept.
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    if not bounded:
        x = builder.select(builder.fcmp_ordered(">", x, highest), highest, x)
    magic = constant(kind, 1.5 * 2.0**mantissa + bias)
    shifted_sum = builder.fadd(x, magic)
    fraction = builder.fsub(x, builder.fsub(shifted_sum, magic))
    integers = _integers_like(kind)
    exponent = builder.shl(builder.bitcast(shifted_sum, integers), constant(integers, mantissa))
    coefficients = _EXP2_FLOAT if single else _EXP2_DOUBLE
    polynomial: Any = constant(kind, coefficients[-1])
    for coefficient in (*coefficients[-2::-1], 1.0):
        polynomial = fmuladd(builder, polynomial, fraction, constant(kind, coefficient))
    return builder.fmul(polynomial, builder.bitcast(exponent, kind))


def outlined(
    builder: ir.IRBuilder,
    name: str,
    arguments: Sequence[Any],
    result: ir.Type,
    body: Callable[[ir.IRBuilder, Sequence[Any]], Any],
) -> Any:
    """Call an LLVM function of its own, generated by `body` when the module first needs it.

    Pieces that several places of a kernel use are compiled once and stay out of the kernel's
    register allocation. `name` must tell apart everything that `body` depends on.
    """
    module = builder.module
    name = f"numba_sparse_attn.{name}"
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, ir.FunctionType(result, [value.type for value in arguments]), name)
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        function.attributes.add("nounwind")
        inner = ir.IRBuilder(function.append_basic_block("entry"))
        value = body(inner, function.args)
        if isinstance(result, ir.VoidType):
            inner.ret_void()
        else:
            inner.ret(value)
    return builder.call(function, arguments)


# --- intrinsics --------------------------------------------------------------------------------


@intrinsic
def address_of(typing_context, array):
    """int64 address of the first element of an array."""

    def generate(context, builder, signature, arguments):
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(view.data, INT64)

    return types.int64(array), generate


@intrinsic
def dot(typing_context, like, left, right, count):
    """Sum of left[i] * right[i] over `count` contiguous elements at two addresses."""

    def generate(context, builder, signature, arguments):
        element = element_type(signature.args[0])

        def body(builder, arguments):
            left, right = (pointer(builder, address) for address in arguments[:2])

            def step(kind, offset, total):
                a = load(builder, kind, shifted(builder, left, offset))
                b = load(builder, kind, shifted(builder, right, offset))
                return fmuladd(builder, a, b, total)

            return sweep(builder, element, arguments[2], constant(element, 0.0), add, step, unroll=4)

        return outlined(builder, f"dot.{element}", arguments[1:], element, body)

    return like.dtype(like, types.int64, types.int64, types.int64), generate


@intrinsic
def axpy(typing_context, like, factor, source, target, count):
    """target[i] += factor * source[i] over `count` contiguous elements at two addresses."""

    def generate(context, builder, signature, arguments):
        element = element_type(signature.args[0])

        def body(builder, arguments):
            factor = arguments[0]
            source, target = (pointer(builder, address) for address in arguments[1:3])

            def step(kind, offset, _):
                factors = factor if kind is element else splat(builder, factor, kind.count)
                place = shifted(builder, target, offset)
                value = load(builder, kind, shifted(builder, source, offset))
                store(builder, fmuladd(builder, factors, value, load(builder, kind, place)), place)

            sweep(builder, element, arguments[3], None, None, step)

        outlined(builder, f"axpy.{element}", arguments[1:], VOID, body)
        return context.get_dummy_value()

    return types.void(like, like.dtype, types.int64, types.int64, types.int64), generate


@intrinsic
def largest(typing_context, like, source, count):
    """Maximum of `count` contiguous elements; NaN are passed over; -inf for none."""

    def generate(context, builder, signature, arguments):
        element = element_type(signature.args[0])

        def body(builder, arguments):
            source = pointer(builder, arguments[0])

            def step(kind, offset, best):
                return larger(builder, best, load(builder, kind, shifted(builder, source, offset)))

            return sweep(builder, element, arguments[1], constant(element, float("-inf")), larger, step)

        return outlined(builder, f"largest.{element}", arguments[1:], element, body)

    return like.dtype(like, types.int64, types.int64), generate


@intrinsic
def exp2_sum(typing_context, like, source, count, shift, factor):
    """source[i] = exp2((source[i] - shift) * factor), in place; returns the sum of the results."""

    def generate(context, builder, signature, arguments):
        element = element_type(signature.args[0])

        def body(builder, arguments):
            source = pointer(builder, arguments[0])
            count, shift, factor = arguments[1:]

            def step(kind, offset, total):
                place = shifted(builder, source, offset)
                shifts, factors = shift, factor
                if kind is not element:
                    shifts, factors = (splat(builder, value, kind.count) for value in (shift, factor))
                difference = builder.fsub(load(builder, kind, place), shifts)
                power = exp2_ir(builder, builder.fmul(difference, factors))
                store(builder, power, place)
                return builder.fadd(total, power)

            return sweep(builder, element, count, constant(element, 0.0), add, step)

        return outlined(builder, f"exp2_sum.{element}", arguments[1:], element, body)

    return like.dtype(like, types.int64, types.int64, like.dtype, like.dtype), generate


@intrinsic
def has_non_finite(typing_context, like, source, count):
    """Whether one of `count` contiguous elements is inf or NaN."""

    def generate(context, builder, signature, arguments):
        element = element_type(signature.args[0])

        def body(builder, arguments):
            source = pointer(builder, arguments[0])

            def step(kind, offset, total):
                value = load(builder, kind, shifted(builder, source, offset))
                return fmuladd(builder, value, constant(kind, 0.0), total)

            total = sweep(builder, element, arguments[1], constant(element, 0.0), add, step)
            return builder.fcmp_unordered("uno", total, total)

        return outlined(builder, f"has_non_finite.{element}", arguments[1:], INT1, body)

    return types.boolean(like, types.int64, types.int64), generate


@intrinsic
def fill(typing_context, like, target, count, value):
    """target[i] = value over `count` contiguous elements at an address."""

    def generate(context, builder, signature, arguments):
        element = element_type(signature.args[0])

        def body(builder, arguments):
            target, value = pointer(builder, arguments[0]), arguments[2]

            def step(kind, offset, _):
                values = value if kind is element else splat(builder, value, kind.count)
                store(builder, values, shifted(builder, target, offset))

            sweep(builder, element, arguments[1], None, None, step)

        outlined(builder, f"fill.{element}", arguments[1:], VOID, body)
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64, like.dtype), generate
