"""Instructions with scalar operands as intrinsics: a row of text, constraints and types each.

What has arrays of registers as operands is built in its own file.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

from .inline import FLOAT32, INT32, INT64, assemble

__all__ = ["instruction", "with_operands"]

_MACHINE = {
    types.void: ir.VoidType(),
    types.int32: INT32,
    types.uint32: INT32,
    types.int64: INT64,
    types.float32: FLOAT32,
}


def instruction(
    text: str, constraints: str, operands: Sequence[Any], result: Any = types.void, *, volatile: bool = True
) -> Any:
    """An intrinsic that is this text.

    Parameters
    ----------
    text : str
        With ``$0`` for the result, if there is one, and further numbers for the operands.
    constraints : str
        One letter a number, as LLVM writes them: ``"=r,l"``.
    operands : Numba types
        What the arguments are converted to.
    result : Numba type
    volatile : bool
        Whether it touches memory or synchronises, so that nothing may move across it.
    """

    def typed(typing_context: Any, *arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            words = [
                context.cast(builder, value, given, wanted)
                for value, given, wanted in zip(values, signature.args, operands, strict=True)
            ]
            answer = assemble(builder, _MACHINE[result], text, constraints, words, volatile=volatile)
            return context.get_dummy_value() if result is types.void else answer

        return result(*arguments), generate

    return with_operands(typed, len(operands))


def with_operands(typed: Any, count: int) -> Any:
    """An intrinsic from a function (typing_context, *arguments) that takes `count` of them.

    Numba takes an intrinsic's parameters from its signature and knows no others than named ones.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ["typing_context", *(f"operand{number}" for number in range(count))]
    typed.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    return intrinsic(typed)
