"""Loads of 8 x 8 matrices of 16-bit elements from shared memory into the fragments of ``mma.py``.

An instruction loads four matrices. Lane ``8 * i + r`` gives the address of row r of matrix i, 16 aligned
bytes. Of matrix i lane l receives, packed in one word, the elements 2 * (l % 4) and the next of row l // 4;
or, if it is transposed, the same elements of column l // 4.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

from .inline import INT32, assemble, element_pointer, pair_of

__all__ = ["load_matrices"]


@functools.cache
def load_matrices(count: int, apart: int, *, transposed: bool) -> Any:
    """Intrinsic (target, first, address): `count` instructions, `apart` bytes from one to the next.

    Instruction i fills the int32 elements ``first + 4 * i`` to ``first + 4 * i + 3`` of `target`. `address`
    is this lane's, of shared memory.
    """
    form = ".trans" if transposed else ""
    text = f"ldmatrix.sync.aligned.m8n8.x4{form}.shared.b16 {{$0, $1, $2, $3}}, [$4];"

    @intrinsic
    def load(typing_context: Any, target: Any, first: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            array, start, place = operands
            for number in range(count):
                row = builder.add(place, ir.Constant(INT32, number * apart))
                words = assemble(builder, pair_of(INT32, 4), text, "=r,=r,=r,=r,r", [row], volatile=True)
                for position in range(4):
                    index = builder.add(start, ir.Constant(start.type, 4 * number + position))
                    pointer = element_pointer(context, builder, signature.args[0], array, index)
                    builder.store(builder.extract_value(words, position), pointer)
            return context.get_dummy_value()

        return types.void(target, first, types.uint32), generate

    return load
