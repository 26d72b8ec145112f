"""Single instructions that LLVM would not choose by itself, or not reliably."""

from __future__ import annotations

from numba.core.types import float32

from .instructions import instruction

__all__ = ["fma_float32", "max_float32"]

#: (a, b): the larger; NaN only if both are.
max_float32 = instruction("max.f32 $0, $1, $2;", "=f,f,f", (float32, float32), float32, volatile=False)

#: (a, b, c): a * b + c, rounded once.
fma_float32 = instruction(
    "fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", (float32, float32, float32), float32, volatile=False
)
