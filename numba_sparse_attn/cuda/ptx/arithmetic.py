"""Single instructions that LLVM would not choose by itself, or not reliably."""

from __future__ import annotations

from numba.core.types import float32, int32

from .instructions import instruction

__all__ = ["fma_float32", "max_float32", "own_thread"]

#: (a, b): the larger; NaN only if both are.
max_float32 = instruction("max.f32 $0, $1, $2;", "=f,f,f", (float32, float32), float32, volatile=False)

#: (a, b, c): a * b + c, rounded once.
fma_float32 = instruction(
    "fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", (float32, float32, float32), float32, volatile=False
)

#: (): threadIdx.x, asked for anew: the compiler does not keep what follows from it over a loop, in registers
#: that the loop could use.
own_thread = instruction("mov.u32 $0, %tid.x;", "=r", (), int32)
