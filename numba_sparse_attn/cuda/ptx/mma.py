"""Products of a warp (mma.sync): 16 rows, depth 16, as many columns as there are tiles of 8.

Where a lane's elements lie, with g = lane // 4 and t = lane % 4, two neighbours of 16 bits in a word:

- left, 16 x 16, 4 words: columns 2 t and 2 t + 1 of rows g and g + 8, then columns 2 t + 8 and 2 t + 9;
- right, 16 x 8, 2 words: rows 2 t and 2 t + 1 of column g, then rows 2 t + 8 and 2 t + 9;
- sums, 16 x 8, 4 float32: columns 2 t and 2 t + 1 of row g, then of row g + 8.

So neighbouring tiles of sums, rounded and packed, are a left operand. Products are summed in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

from .inline import FLOAT32, assemble, element_pointer, pair_of

__all__ = ["multiply"]

_TYPES = {"float16": "f16", "bfloat16": "bf16"}


@functools.cache
def multiply(kind: str, pairs: int, apart: int, *, crossed: bool) -> Any:
    """Intrinsic (sums, first, left, start, right): ``sums += left @ right`` for `pairs` pairs of tiles.

    Pair i has the 8 float32 elements of `sums` from ``first + apart * i`` on, and the 4 int32 elements of
    `right` from ``4 * i`` on: one instruction of ``ldmatrix.py`` loads a pair. They are both words of its
    first tile and both of its second, or, `crossed`, the first word of either and the second of either.
    `left` is the 4 from `start` on.
    """
    words = ((0, 2), (1, 3)) if crossed else ((0, 1), (2, 3))
    one = _TYPES[kind]
    # Sums are other registers than what they are added to: where those are 0, they need not be set to it.
    text = (
        f"mma.sync.aligned.m16n8k16.row.col.f32.{one}.{one}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    constraints = "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f"

    @intrinsic
    def add(typing_context: Any, sums: Any, first: Any, left: Any, start: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            def pointers(which: int, begin: Any, offsets: Iterable[int]) -> list[Any]:
                places = [builder.add(begin, ir.Constant(begin.type, offset)) for offset in offsets]
                return [
                    element_pointer(context, builder, signature.args[which], operands[which], place)
                    for place in places
                ]

            factors = [builder.load(pointer) for pointer in pointers(2, operands[3], range(4))]
            nothing = ir.Constant(operands[1].type, 0)
            for tile in range(2 * pairs):
                pair, second = divmod(tile, 2)
                place = apart * pair + 4 * second
                totals = pointers(0, operands[1], range(place, place + 4))
                columns = pointers(4, nothing, (4 * pair + word for word in words[second]))
                values = [*factors, *(builder.load(pointer) for pointer in (*columns, *totals))]
                result = assemble(builder, pair_of(FLOAT32, 4), text, constraints, values)
                for position, pointer in enumerate(totals):
                    builder.store(builder.extract_value(result, position), pointer)
            return context.get_dummy_value()

        return types.void(sums, first, left, start, right), generate

    return add
