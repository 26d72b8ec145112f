"""Shared memory by its 32-bit addresses."""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.core.types import int32, uint32
from numba.cuda.extending import intrinsic

from .inline import INT32, INT64, assemble
from .instructions import instruction

__all__ = ["load_shared_int32", "place_of", "shared_address", "store_shared_int32"]

#: What an address is.
place_of: Any = uint32


@intrinsic
def shared_address(typing_context: Any, array: Any) -> Any:
    """Address of a shared array's first element."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=operands[0]).data
        return assemble(
            builder,
            INT32,
            "{ .reg .u64 wide; cvta.to.shared.u64 wide, $1; cvt.u32.u64 $0, wide; }",
            "=r,l",
            [builder.ptrtoint(data, INT64)],
        )

    return types.uint32(array), generate


#: (address)
load_shared_int32 = instruction("ld.shared.b32 $0, [$1];", "=r,r", (uint32,), int32)

#: (address, value)
store_shared_int32 = instruction("st.shared.b32 [$0], $1;", "r,r", (uint32, int32))
