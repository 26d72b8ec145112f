"""From the caller's memory to compute type and back.

Kernels take raw addresses, byte strides and a :func:`type_code`, so that one compiled kernel serves
float16, bfloat16 and float32 arrays with any strides: those three are computed in float32, float64
in float64, and only the type of the scratch memory is known when a kernel is compiled.

Half-precision values are converted with integer operations. LLVM's own half type would turn into
calls of a run-time library on machines without conversion instructions, and that library is not
there inside of a Numba kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
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
    fold,
    lanes,
    load,
    outlined,
    pointer,
    shifted,
    store,
)

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "head_addresses",
    "load_row",
    "store_row",
    "type_code",
]

FLOAT16 = 0
BFLOAT16 = 1
FLOAT32 = 2
FLOAT64 = 3

_CODES = {
    np.dtype(np.float16): FLOAT16,
    np.dtype(ml_dtypes.bfloat16): BFLOAT16,
    np.dtype(np.float32): FLOAT32,
    np.dtype(np.float64): FLOAT64,
}

_HALF_WORD = ir.IntType(16)
_SINGLE = ir.FloatType()
_DOUBLE = ir.DoubleType()
_SIZES = {_HALF_WORD: 2, _SINGLE: 4, _DOUBLE: 8}

#: (builder, scalar or vector) -> the same values in another type.
_Conversion = Callable[[Any, Any], Any]


def type_code(dtype: np.dtype[Any]) -> int:
    """Number by which kernels know an element type.

    Examples
    --------
    >>> import numpy as np
    >>> type_code(np.dtype(np.float16)), type_code(np.dtype(np.float64))
    (0, 3)
    """
    return _CODES[dtype]


def head_addresses(array: npt.NDArray[Any], item_axes: int = 2) -> npt.NDArray[np.int64]:
    """Address of the first element of every head of an array, as ``int64 [batch, heads]``.

    Parameters
    ----------
    array : (..., heads, n, d)
        Any strides. The axes before ``heads`` are flattened in C order into ``batch``.
    item_axes : int
        Axes that belong to one head: 2 for ``(n, d)``, 1 for the ``(n,)`` of lse.

    Returns
    -------
    int64 [batch, heads]

    Examples
    --------
    >>> import numpy as np
    >>> array = np.zeros((3, 2, 5, 4), np.float32)[::-1]
    >>> addresses = head_addresses(array)
    >>> (addresses - addresses[0, 0]).tolist()
    [[0, 80], [-160, -80], [-320, -240]]
    """
    lead = array.ndim - item_axes
    addresses = [array.__array_interface__["data"][0]]
    for size, stride in zip(array.shape[:lead], array.strides[:lead], strict=True):
        addresses = [address + stride * i for address in addresses for i in range(size)]
    return np.array(addresses, np.int64).reshape(math.prod(array.shape[: lead - 1]), array.shape[lead - 1])


@intrinsic
def load_row(
    typing_context: Any,
    code: Any,
    address: Any,
    stride_bytes: Any,
    count: Any,
    destination: Any,
    offset: Any,
) -> Any:
    """Read `count` elements that lie `stride_bytes` apart into ``destination[offset:]``.

    A float64 `destination` goes with ``FLOAT64`` memory and a float32 one with the three other codes:
    that is decided when a kernel is compiled, the rest when it runs.

    Parameters
    ----------
    code : int
        :func:`type_code` of the memory.
    address, stride_bytes, count : int
        First element, distance of elements (0 and negative ones included), number of elements. The
        address needs no alignment.
    destination : float32 or float64 [size]
        Contiguous, and nothing that the memory overlaps.
    offset : int
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = element_type(signature.args[4])

        def body(builder: Any, arguments: Any) -> None:
            code, address, stride, count, target = arguments
            source, target = pointer(builder, address), pointer(builder, target)

            def read(memory_type: ir.Type, convert: _Conversion) -> None:
                _copy(builder, source, stride, memory_type, target, None, element, count, convert)

            _by_code(builder, code, element, read, _WIDEN)

        target = _element_address(context, builder, signature.args[4], *arguments[4:])
        outlined(builder, f"load_row.{element}", [*arguments[:4], target], VOID, body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, destination, types.int64), generate


@intrinsic
def store_row(
    typing_context: Any,
    code: Any,
    address: Any,
    stride_bytes: Any,
    count: Any,
    source: Any,
    offset: Any,
) -> Any:
    """Write ``source[offset : offset + count]`` to elements that lie `stride_bytes` apart.

    The counterpart of :func:`load_row`. Values are rounded to the nearest, ties to even, as ``astype``
    does: too large ones become infinite, small ones subnormal, NaN stays NaN.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = element_type(signature.args[4])

        def body(builder: Any, arguments: Any) -> None:
            code, address, stride, count, source = arguments
            source, target = pointer(builder, source), pointer(builder, address)

            def write(memory_type: ir.Type, convert: _Conversion) -> None:
                _copy(builder, source, None, element, target, stride, memory_type, count, convert)

            _by_code(builder, code, element, write, _NARROW)

        source = _element_address(context, builder, signature.args[4], *arguments[4:])
        outlined(builder, f"store_row.{element}", [*arguments[:4], source], VOID, body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, source, types.int64), generate


def _element_address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """int64 address of an element of a contiguous array."""
    view = context.make_array(array_type)(context, builder, array)
    size = element_bytes(element_type(array_type))
    return builder.add(builder.ptrtoint(view.data, INT64), builder.mul(index, ir.Constant(INT64, size)))


def _by_code(
    builder: Any,
    code: Any,
    element: ir.Type,
    generate: Callable[[ir.Type, _Conversion], None],
    conversions: tuple[_Conversion, _Conversion],
) -> None:
    """Code for every memory type that goes with a compute type, chosen when it runs."""
    if element == _DOUBLE:
        generate(_DOUBLE, _as_is)
        return
    for number, memory_type, convert in (
        (FLOAT16, _HALF_WORD, conversions[0]),
        (BFLOAT16, _HALF_WORD, conversions[1]),
        (FLOAT32, _SINGLE, _as_is),
    ):
        with builder.if_then(builder.icmp_signed("==", code, ir.Constant(INT64, number))):
            generate(memory_type, convert)


def _copy(
    builder: Any,
    source: Any,
    source_stride: Any,
    source_type: ir.Type,
    target: Any,
    target_stride: Any,
    target_type: ir.Type,
    count: Any,
    convert: _Conversion,
) -> None:
    """Convert `count` elements. One side has a stride in bytes, the other (None) lies side by side.

    Where both lie side by side, whole vectors are converted as such.
    """
    sizes = _SIZES[source_type], _SIZES[target_type]
    strides = tuple(
        ir.Constant(INT64, size) if stride is None else stride
        for size, stride in zip(sizes, (source_stride, target_stride), strict=True)
    )

    def several(width: int) -> Any:
        def step(index: Any, _: Any) -> list[Any]:
            kind = source_type if width == 1 else ir.VectorType(source_type, width)
            places = [
                shifted(builder, base, builder.mul(index, stride))
                for base, stride in zip((source, target), strides, strict=True)
            ]
            store(builder, convert(builder, load(builder, kind, places[0])), places[1])
            return []

        return step

    width = lanes(_DOUBLE if source_type == _DOUBLE else _SINGLE)
    contiguous = builder.and_(
        *(
            builder.icmp_signed("==", stride, ir.Constant(INT64, size))
            for stride, size in zip(strides, sizes, strict=True)
        )
    )
    rest = builder.srem(count, ir.Constant(INT64, width))
    whole = builder.select(contiguous, builder.sub(count, rest), ir.Constant(INT64, 0))
    fold(builder, 0, whole, width, [], several(width))
    fold(builder, whole, count, 1, [], several(1))


def _as(value: Any, element: ir.Type) -> ir.Type:
    """`element`, or a vector of it that is as long as `value`."""
    kind = value.type
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _as_is(builder: Any, value: Any) -> Any:
    return value


def _widen_float16(builder: Any, bits: Any) -> Any:
    """float32 with the value of float16 bits."""
    integers, floats = _as(bits, INT32), _as(bits, _SINGLE)

    def word(value: int) -> Any:
        return constant(integers, value)

    half = builder.zext(bits, integers)
    sign = builder.shl(builder.and_(half, word(0x8000)), word(16))
    magnitude = builder.shl(builder.and_(half, word(0x7FFF)), word(13))
    exponent = builder.and_(magnitude, word(0x1F << 23))
    special = builder.icmp_unsigned("==", exponent, word(0x1F << 23))
    # The exponent bias grows by 112; infinity and NaN move up to the highest exponent instead.
    normal = builder.add(magnitude, builder.select(special, word(224 << 23), word(112 << 23)))
    # 2**-14 plus the fraction, minus 2**-14: exact, and no subnormal float32 is ever an operand.
    lifted = builder.bitcast(builder.add(magnitude, word(113 << 23)), floats)
    fraction = builder.fsub(lifted, constant(floats, 2.0**-14))
    subnormal = builder.icmp_unsigned("==", exponent, word(0))
    value = builder.select(subnormal, builder.bitcast(fraction, integers), normal)
    return builder.bitcast(builder.or_(value, sign), floats)


def _widen_bfloat16(builder: Any, bits: Any) -> Any:
    """float32 with the value of bfloat16 bits, which are its upper half."""
    integers = _as(bits, INT32)
    shifted_up = builder.shl(builder.zext(bits, integers), constant(integers, 16))
    return builder.bitcast(shifted_up, _as(bits, _SINGLE))


def _round_bits(builder: Any, magnitude: Any, dropped: int) -> Any:
    """`magnitude` without its lowest bits, rounded to nearest even; a carry moves to the exponent."""
    kind = magnitude.type
    odd = builder.and_(builder.lshr(magnitude, constant(kind, dropped)), constant(kind, 1))
    biased = builder.add(builder.add(magnitude, constant(kind, (1 << (dropped - 1)) - 1)), odd)
    return builder.lshr(biased, constant(kind, dropped))


def _narrow_float16(builder: Any, value: Any) -> Any:
    """Bits of the float16 nearest to a float32."""
    integers, floats = _as(value, INT32), _as(value, _SINGLE)

    def word(value: int) -> Any:
        return constant(integers, value)

    bits = builder.bitcast(value, integers)
    sign = builder.and_(builder.lshr(bits, word(16)), word(0x8000))
    magnitude = builder.and_(bits, word(0x7FFFFFFF))
    normal = _round_bits(builder, builder.sub(magnitude, word(112 << 23)), 13)
    # Below 2**-14 the unit of float16 is 2**-24, the unit of float32 in [0.5, 1): an addition rounds.
    lifted = builder.fadd(builder.bitcast(magnitude, floats), constant(floats, 0.5))
    subnormal = builder.sub(builder.bitcast(lifted, integers), word(126 << 23))
    small = builder.icmp_unsigned("<", magnitude, word(113 << 23))
    result = builder.select(small, subnormal, normal)
    too_large = builder.icmp_unsigned(">=", magnitude, word(143 << 23))
    result = builder.select(too_large, word(0x7C00), result)
    quiet = builder.or_(builder.and_(builder.lshr(magnitude, word(13)), word(0x3FF)), word(0x7E00))
    is_nan = builder.icmp_unsigned(">", magnitude, word(255 << 23))
    result = builder.select(is_nan, quiet, result)
    return builder.trunc(builder.or_(result, sign), _as(value, _HALF_WORD))


def _narrow_bfloat16(builder: Any, value: Any) -> Any:
    """Bits of the bfloat16 nearest to a float32."""
    integers = _as(value, INT32)
    bits = builder.bitcast(value, integers)
    rounded = _round_bits(builder, bits, 16)
    quiet = builder.or_(builder.lshr(bits, constant(integers, 16)), constant(integers, 0x40))
    magnitude = builder.and_(bits, constant(integers, 0x7FFFFFFF))
    is_nan = builder.icmp_unsigned(">", magnitude, constant(integers, 255 << 23))
    return builder.trunc(builder.select(is_nan, quiet, rounded), _as(value, _HALF_WORD))


_WIDEN = _widen_float16, _widen_bfloat16
_NARROW = _narrow_float16, _narrow_bfloat16
