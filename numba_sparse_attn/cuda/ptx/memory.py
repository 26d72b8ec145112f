"""Loads and stores of 16 bytes a lane, with conversion to and from the accumulator type.

Addresses are plain 64-bit integers, of shared memory too. Loads from global memory go through the
read-only path (``ld.global.nc``), which is for what nobody writes while a kernel runs; what a kernel writes
itself is read back by ``load_written``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

from .convert import narrow_pair, widen_pair
from .inline import FLOAT32, FLOAT64, INT16, INT32, INT64, assemble, element_pointer, pair_of
from .instructions import instruction

__all__ = [
    "load_chunk",
    "load_element",
    "load_int32",
    "load_int64",
    "load_shared_chunk",
    "load_written",
    "prefetch",
    "shared_address",
    "store_chunk",
    "store_element",
    "store_int32",
]

_STORE_WORDS = "st.global.v4.b32 [$0], {$1, $2, $3, $4};"
_STORE_FLOATS = "st.global.v4.f32 [$0], {$1, $2, $3, $4};"
_STORE_DOUBLES = "st.global.v2.f64 [$0], {$1, $2};"


@intrinsic
def load_int32(typing_context: Any, address: Any) -> Any:
    """The int32 at an address."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return assemble(builder, INT32, "ld.global.nc.b32 $0, [$1];", "=r,l", operands, volatile=True)

    return types.int32(types.int64), generate


@intrinsic
def load_int64(typing_context: Any, address: Any) -> Any:
    """The int64 at an address."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return assemble(builder, INT64, "ld.global.nc.b64 $0, [$1];", "=l,l", operands, volatile=True)

    return types.int64(types.int64), generate


#: (address): bring its 32 bytes nearer.
prefetch = instruction("prefetch.global.L1 [$0];", "l", (types.int64,))

#: (address, value)
store_int32 = instruction("st.global.b32 [$0], $1;", "l,r", (types.int64, types.int32))


def _offset(builder: Any, index: Any, position: int) -> Any:
    return builder.add(index, ir.Constant(index.type, position))


#: How 16 bytes are loaded: what stands for a type, the instruction's suffix, and LLVM's type and constraint.
_FORMS = {
    "float64": (2, "v2.f64 {$0, $1}, [$2];", FLOAT64, "d"),
    "float32": (4, "v4.f32 {$0, $1, $2, $3}, [$4];", FLOAT32, "f"),
    "16 bits": (4, "v4.b32 {$0, $1, $2, $3}, [$4];", INT32, "r"),
}


def _chunk_loader(kind: str, space: str, register: str) -> Any:
    """Intrinsic ``(address, target, offset)``: 16 aligned bytes of `kind` into an accumulator array."""
    count, text, form, constraint = _FORMS.get(kind, _FORMS["16 bits"])
    constraints = ",".join([f"={constraint}"] * count + [register])

    @intrinsic
    def load(typing_context: Any, address: Any, target: Any, offset: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            address = operands[0] if register == "l" else builder.trunc(operands[0], INT32)
            loaded = assemble(
                builder, pair_of(form, count), f"ld.{space}.{text}", constraints, [address], volatile=True
            )
            values = [builder.extract_value(loaded, position) for position in range(count)]
            if form is INT32:
                values = [value for word in values for value in widen_pair(builder, kind, word)]
            for position, value in enumerate(values):
                index = _offset(builder, operands[2], position)
                builder.store(value, element_pointer(context, builder, signature.args[1], operands[1], index))
            return context.get_dummy_value()

        return types.void(types.int64, target, offset), generate

    return load


def load_chunk(kind: str) -> Any:
    """Intrinsic ``(address, target, offset)``: 16 aligned bytes of global memory, widened."""
    return _chunk_loader(kind, "global.nc", "l")


def load_shared_chunk(kind: str) -> Any:
    """Intrinsic ``(address, target, offset)``: 16 aligned bytes of shared memory, widened."""
    return _chunk_loader(kind, "shared", "r")


@intrinsic
def shared_address(typing_context: Any, array: Any) -> Any:
    """Address of a shared array, in the numbering of shared memory."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=operands[0]).data
        generic = builder.ptrtoint(data, INT64)
        return assemble(builder, INT64, "cvta.to.shared.u64 $0, $1;", "=l,l", [generic])

    return types.int64(array), generate


def store_chunk(kind: str) -> Any:
    """Intrinsic ``(address, source, offset)``: accumulator elements, rounded, to 16 aligned bytes."""

    @intrinsic
    def store(typing_context: Any, address: Any, source: Any, offset: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            count = {"float64": 2, "float32": 4}.get(kind, 8)
            values = []
            for position in range(count):
                index = _offset(builder, operands[2], position)
                values.append(
                    builder.load(element_pointer(context, builder, signature.args[1], operands[1], index))
                )
            nothing = ir.VoidType()
            if kind == "float64":
                assemble(builder, nothing, _STORE_DOUBLES, "l,d,d", [operands[0], *values], volatile=True)
            elif kind == "float32":
                assemble(builder, nothing, _STORE_FLOATS, "l,f,f,f,f", [operands[0], *values], volatile=True)
            else:
                words = [narrow_pair(builder, kind, *values[i : i + 2]) for i in range(0, count, 2)]
                assemble(builder, nothing, _STORE_WORDS, "l,r,r,r,r", [operands[0], *words], volatile=True)
            return context.get_dummy_value()

        return types.void(types.int64, source, offset), generate

    return store


#: How one element is loaded: LLVM's type, the instruction's suffix and the constraint.
_ELEMENT_FORMS = {
    "float64": (FLOAT64, "f64", "d"),
    "float32": (FLOAT32, "f32", "f"),
    "16 bits": (INT16, "b16", "h"),
}


def _element_loader(kind: str, space: str) -> Any:
    """Intrinsic ``(address)``: one element of a state space, widened."""

    @intrinsic
    def load(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            form, suffix, letter = _ELEMENT_FORMS.get(kind, _ELEMENT_FORMS["16 bits"])
            text = f"ld.{space}.{suffix} $0, [$1];"
            loaded = assemble(builder, form, text, f"={letter},l", operands, volatile=True)
            if form is not INT16:
                return loaded
            return widen_pair(builder, kind, builder.zext(loaded, INT32))[0]

        return (types.float64 if kind == "float64" else types.float32)(types.int64), generate

    return load


def load_element(kind: str) -> Any:
    """Intrinsic ``(address)``: one element, widened."""
    return _element_loader(kind, "global.nc")


def load_written(kind: str) -> Any:
    """Intrinsic ``(address)``: one element, widened, of memory that the kernel itself writes to."""
    return _element_loader(kind, "global")


def store_element(kind: str) -> Any:
    """Intrinsic ``(address, value)``: one accumulator value, rounded."""

    @intrinsic
    def store(typing_context: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            address, element = operands
            nothing = ir.VoidType()
            if kind == "float64":
                assemble(
                    builder, nothing, "st.global.f64 [$0], $1;", "l,d", [address, element], volatile=True
                )
            elif kind == "float32":
                assemble(
                    builder, nothing, "st.global.f32 [$0], $1;", "l,f", [address, element], volatile=True
                )
            else:
                word = narrow_pair(builder, kind, element, ir.Constant(FLOAT32, 0.0))
                half = builder.trunc(word, INT16)
                assemble(builder, nothing, "st.global.b16 [$0], $1;", "l,h", [address, half], volatile=True)
            return context.get_dummy_value()

        accumulator = types.float64 if kind == "float64" else types.float32
        return types.void(types.int64, accumulator), generate

    return store
