"""What the kernels of Tensor Cores do with fragments of matrices, on a GPU or in Numba's simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import config, cuda, uint8

__all__ = [
    "any_lane",
    "fma_float32",
    "keep_by_bits",
    "large_room",
    "load_matrices",
    "max_float32",
    "multiply",
    "own_thread",
    "pack_pair",
    "place_of",
    "store_shared_int32",
    "sync_warp",
]

if config.ENABLE_CUDASIM:
    from .simulated_fragments import (
        any_lane,
        fma_float32,
        keep_by_bits,
        large_room,
        load_matrices,
        max_float32,
        multiply,
        own_thread,
        pack_pair,
        place_of,
        store_shared_int32,
        sync_warp,
    )
else:
    from ..ptx.arithmetic import fma_float32, max_float32, own_thread
    from ..ptx.ldmatrix import load_matrices
    from ..ptx.mma import multiply
    from ..ptx.registers import keep_by_bits, pack_pair
    from ..ptx.shared import place_of, shared_address, store_shared_int32

    @cuda.jit(device=True, inline="always")
    def any_lane(condition):
        """Whether it holds in any lane of the warp."""
        return cuda.any_sync(0xFFFFFFFF, condition)

    @cuda.jit(device=True, inline="always")
    def sync_warp():
        """Lanes see what the others have written before."""
        cuda.syncwarp()

    def large_room(nbytes: int) -> Callable[[], Any]:
        """Device function ``()``: the address of all dynamic shared memory, aligned to 128 bytes.

        A block gets no more than 48 KiB otherwise. `nbytes` includes 127 bytes for the alignment.
        """

        @cuda.jit(device=True, inline="always")
        def room():
            return place_of((shared_address(cuda.shared.array(0, uint8)) + 127) & 0xFFFFFF80)

        return room
