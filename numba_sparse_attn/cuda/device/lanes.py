"""What lanes of a warp do together, and how they reach memory; on a GPU or in Numba's simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import config, cuda, int64

__all__ = [
    "ballot",
    "commit_copies",
    "copy_chunk",
    "exp2",
    "from_lane",
    "load_chunk",
    "load_element",
    "load_int32",
    "load_int64",
    "load_shared_chunk",
    "load_written",
    "shared_room",
    "store_chunk",
    "store_element",
    "store_int32",
    "wait_for_copies",
    "xor_lane",
]

if config.ENABLE_CUDASIM:
    from .simulated import (
        ballot,
        commit_copies,
        copy_chunk,
        exp2,
        from_lane,
        load_chunk,
        load_element,
        load_int32,
        load_int64,
        load_shared_chunk,
        load_written,
        shared_room,
        store_chunk,
        store_element,
        store_int32,
        wait_for_copies,
        xor_lane,
    )
else:
    import math

    from ..ptx.convert import exp2_float32
    from ..ptx.cp_async import commit_copies, copy_chunk, wait_for_copies
    from ..ptx.memory import (
        load_chunk,
        load_element,
        load_int32,
        load_int64,
        load_shared_chunk,
        load_written,
        shared_address,
        store_chunk,
        store_element,
        store_int32,
    )

    _EVERY_LANE = 0xFFFFFFFF

    @cuda.jit(device=True, inline="always")
    def xor_lane(value, distance):
        """The value of the lane whose number differs in the bits of `distance`."""
        return cuda.shfl_xor_sync(_EVERY_LANE, value, distance)

    @cuda.jit(device=True, inline="always")
    def from_lane(value, lane):
        """The value of one lane, for every lane of the warp (which may name different ones)."""
        return cuda.shfl_sync(_EVERY_LANE, value, lane)

    @cuda.jit(device=True, inline="always")
    def ballot(condition):
        """Bit l says whether it holds in lane l."""
        return cuda.ballot_sync(_EVERY_LANE, condition)

    def shared_room(nbytes: int) -> Callable[[], Any]:
        """Device function ``()``: the address of so many bytes of shared memory, aligned to 16."""
        words = -(-nbytes // 8)

        @cuda.jit(device=True, inline="always")
        def room():
            return shared_address(cuda.shared.array(words, int64, 16))

        return room

    @cuda.jit(device=True, inline="always")
    def _exp2_float64(x):
        return math.exp2(x)

    def exp2(kind: str) -> Callable[[Any], Any]:
        """Device function 2**x in the accumulator type of `kind`."""
        return _exp2_float64 if kind == "float64" else exp2_float32
