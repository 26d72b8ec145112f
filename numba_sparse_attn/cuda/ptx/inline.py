"""Inline PTX as Numba-CUDA intrinsics: the only place that knows how an instruction is spelled in LLVM.

Everything else in ``ptx/`` is instruction text and operand types, so that another back end needs a new
version of this file and not of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

__all__ = ["FLOAT32", "FLOAT64", "INT16", "INT32", "INT64", "assemble", "element_pointer", "pair_of"]

INT16, INT32, INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
FLOAT32, FLOAT64 = ir.FloatType(), ir.DoubleType()


def pair_of(kind: ir.Type, count: int = 2) -> ir.LiteralStructType:
    """What an instruction with `count` results of one kind returns."""
    return ir.LiteralStructType([kind] * count)


def assemble(
    builder: Any,
    result: ir.Type,
    text: str,
    constraints: str,
    operands: Sequence[Any],
    *,
    volatile: bool = False,
) -> Any:
    """One inline-assembly call; `volatile` for whatever touches memory or synchronizes."""
    kinds = [operand.type for operand in operands]
    if volatile:
        constraints = f"{constraints},~{{memory}}".lstrip(",")
    template = ir.InlineAsm(ir.FunctionType(result, kinds), text, constraints, side_effect=volatile)
    return builder.call(template, list(operands))


def element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to an element of a local or shared array."""
    data = context.make_array(array_type)(context, builder, value=array).data
    return builder.gep(data, [index])
