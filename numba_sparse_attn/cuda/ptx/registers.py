"""Arithmetic on arrays of registers."""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

from .convert import narrow_pair
from .inline import FLOAT32, INT32, assemble, element_pointer, pair_of

__all__ = ["keep_by_bits", "pack_pair"]


@functools.cache
def pack_pair(kind: str) -> Any:
    """Intrinsic (low, high): two float32, rounded to `kind`, as one 32-bit word."""

    @intrinsic
    def pack(typing_context: Any, low: Any, high: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            return narrow_pair(builder, kind, *operands)

        return types.int32(types.float32, types.float32), generate

    return pack


@functools.cache
def keep_by_bits(first: int, count: int) -> Any:
    """Intrinsic (array, word): float32 elements ``first + i`` whose bit i is 0 become -inf; count <= 32.

    In place and in one piece of text, so that the elements stay in the registers in which they are.
    """

    @intrinsic
    def keep(typing_context: Any, array: Any, word: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            pointers = [
                element_pointer(
                    context, builder, signature.args[0], operands[0], ir.Constant(INT32, first + i)
                )
                for i in range(count)
            ]
            lines = ["{ .reg .pred kept; .reg .b32 bit;"]
            for i in range(count):
                lines.append(
                    f"and.b32 bit, ${2 * count}, {1 << i}; setp.ne.b32 kept, bit, 0; "
                    f"selp.f32 ${i}, ${count + i}, 0fFF800000, kept;"
                )
            constraints = ["=f"] * count + [str(i) for i in range(count)] + ["r"]
            values = [builder.load(pointer) for pointer in pointers]
            result = assemble(
                builder,
                pair_of(FLOAT32, count),
                "\n".join([*lines, "}"]),
                ",".join(constraints),
                [*values, operands[1]],
            )
            for i, pointer in enumerate(pointers):
                builder.store(builder.extract_value(result, i), pointer)
            return context.get_dummy_value()

        return types.void(array, types.int32), generate

    return keep
