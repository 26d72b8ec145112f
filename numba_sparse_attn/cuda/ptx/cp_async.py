"""Copies from global to shared memory that do not pass through registers, 16 bytes a thread."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

from .inline import INT32, assemble

__all__ = ["commit_copies", "copy_chunk", "wait_for_copies"]


@intrinsic
def copy_chunk(typing_context: Any, target: Any, source: Any, size: Any) -> Any:
    """Queue a copy of `size` bytes, 0 to 16, to a shared address; the rest of the 16 becomes 0."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        place = builder.trunc(operands[0], INT32)
        text = "cp.async.cg.shared.global [$0], [$1], 16, $2;"
        assemble(builder, ir.VoidType(), text, "r,l,r", [place, *operands[1:]], volatile=True)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int32), generate


@intrinsic
def commit_copies(typing_context: Any) -> Any:
    """Close a group: the copies that this thread has queued since the last one; it may be empty."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        assemble(builder, ir.VoidType(), "cp.async.commit_group;", "", [], volatile=True)
        return context.get_dummy_value()

    return types.void(), generate


def wait_for_copies(groups: int) -> Any:
    """Intrinsic ``()``: wait until at most the latest `groups` groups of this thread are under way."""

    @intrinsic
    def wait(typing_context: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            text = f"cp.async.wait_group {groups};"
            assemble(builder, ir.VoidType(), text, "", [], volatile=True)
            return context.get_dummy_value()

        return types.void(), generate

    return wait
