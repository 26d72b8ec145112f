"""Between 16-bit pairs and float32, and the fast base-2 exponential.

Conversions are all that is done in half precision: sums of products in float16, which is what ``cuda.fp16``
offers, break the error rule, those of scores as well as those of values
(``tests/cuda/test_half_precision.py`` computes both).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

from .inline import FLOAT32, INT32, assemble, pair_of

__all__ = ["exp2_float32", "narrow_pair", "widen_pair"]

_WIDEN_FLOAT16 = (
    "{ .reg .b16 low, high; mov.b32 {low, high}, $2; cvt.f32.f16 $0, low; cvt.f32.f16 $1, high; }"
)
#: The first source of a packed conversion becomes the upper half.
_NARROW = {"float16": "cvt.rn.f16x2.f32 $0, $2, $1;", "bfloat16": "cvt.rn.bf16x2.f32 $0, $2, $1;"}


def widen_pair(builder: Any, kind: str, word: Any) -> list[Any]:
    """The two float32 values of a packed word, the lower half first."""
    if kind == "bfloat16":
        low = builder.shl(word, ir.Constant(INT32, 16))
        high = builder.and_(word, ir.Constant(INT32, 0xFFFF0000))
        return [builder.bitcast(low, FLOAT32), builder.bitcast(high, FLOAT32)]
    both = assemble(builder, pair_of(FLOAT32), _WIDEN_FLOAT16, "=f,=f,r", [word])
    return [builder.extract_value(both, position) for position in range(2)]


def narrow_pair(builder: Any, kind: str, low: Any, high: Any) -> Any:
    """Two float32 values, rounded to nearest even, as one packed word."""
    return assemble(builder, INT32, _NARROW[kind], "=r,f,f", [low, high])


@intrinsic
def exp2_float32(typing_context: Any, x: Any) -> Any:
    """2**x within 2 units in the last place; 0 for -inf."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return assemble(builder, FLOAT32, "ex2.approx.ftz.f32 $0, $1;", "=f,f", operands)

    return types.float32(types.float32), generate
