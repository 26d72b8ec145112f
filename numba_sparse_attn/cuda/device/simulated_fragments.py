"""The twins of what ``fragments`` takes from ``ptx/``, for Numba's simulator.

Lanes hand in their operands, the last one to come computes for the whole warp, and each takes its part of the
result: the layouts are those of the PTX manual, written down here a second time. Sums are rounded to
float32 once an instruction; how the hardware rounds inside of one is not documented.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from numba import cuda

from .simulated import aligned_room, exchange, shared_elements

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

_Array = npt.NDArray[Any]
_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_LANE = np.arange(32)
#: Rows and columns of a lane's words, (lane, word, element of the word).
_ROW, _COLUMN = _LANE[:, None, None] // 4, 2 * (_LANE[:, None, None] % 4) + np.arange(2)
_LEFT = _ROW + np.array([0, 8, 0, 8])[:, None], _COLUMN + np.array([0, 0, 8, 8])[:, None]
_RIGHT = _COLUMN + np.array([0, 8])[:, None], _ROW + np.zeros((2, 1), int)
_SUMS = _ROW + np.array([0, 8])[:, None], _COLUMN + np.zeros((2, 1), int)

#: An address of shared memory, which is the host's here.
place_of: Any = np.int64


def any_lane(condition: Any) -> bool:
    """Whether it holds in any lane of the warp."""
    return any(exchange(bool(condition))[0])


def sync_warp() -> None:
    """Lanes see what the others have written before."""
    exchange(None)


@cuda.jit(device=True)
def own_thread():
    """threadIdx.x."""
    return cuda.threadIdx.x


def fma_float32(a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once (twice where float64 does not hold the sum)."""
    return np.float32(np.float64(a) * np.float64(b) + np.float64(c))


def max_float32(a: Any, b: Any) -> Any:
    """The larger; NaN only if both are."""
    return np.fmax(a, b)


@functools.cache
def pack_pair(kind: str) -> Callable[[Any, Any], Any]:
    """Function (low, high): two float32, rounded to `kind`, as one 32-bit word."""

    def pack(low: Any, high: Any) -> Any:
        with np.errstate(over="ignore"):
            return np.array([low, high], np.float32).astype(_DTYPES[kind]).view(np.int32)[0]

    return pack


@functools.cache
def keep_by_bits(first: int, count: int) -> Callable[[_Array, Any], None]:
    """Function (array, word): float32 elements ``first + i`` whose bit i is 0 become -inf; count <= 32."""
    bits = np.arange(count)

    def keep(array: _Array, word: Any) -> None:
        array[first : first + count][int(word) >> bits & 1 == 0] = -np.inf

    return keep


def large_room(nbytes: int) -> Callable[[], Any]:
    """Function ``()``: the address of `nbytes` bytes of shared memory, aligned to 128."""
    return aligned_room(nbytes, 128)


def store_shared_int32(address: Any, value: Any) -> None:
    """Write a word to shared memory."""
    shared_elements(address, np.dtype(np.int32), 1)[0] = value


@functools.cache
def load_matrices(count: int, apart: int, *, transposed: bool) -> Callable[[_Array, int, Any], None]:
    """Function (target, first, address): see ``ptx/ldmatrix.py``."""

    def load_all(addresses: list[Any]) -> _Array:
        elements = np.array(
            [
                [shared_elements(address + i * apart, np.dtype(np.int16), 8) for address in addresses]
                for i in range(count)
            ]
        )
        matrices = elements.reshape(4 * count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(1, 2)
        # (matrix, lane, element) -> (lane, matrix, word)
        words = np.ascontiguousarray(matrices).reshape(4 * count, 32, 2)
        return np.ascontiguousarray(words.swapaxes(0, 1)).view(np.int32)[..., 0]

    def load(target: _Array, first: int, address: Any) -> None:
        words, lane = exchange(address, load_all)
        target[first : first + 4 * count] = words[lane]

    return load


@functools.cache
def multiply(
    kind: str, pairs: int, apart: int, *, crossed: bool
) -> Callable[[_Array, int, _Array, int, _Array], None]:
    """Function (sums, first, left, start, right): see ``ptx/mma.py``."""
    dtype = _DTYPES[kind]
    # Of the 4 elements of a tile in `sums`, and of all tiles.
    places = (apart * np.arange(pairs)[:, None] + np.arange(8)).reshape(2 * pairs, 4)

    def widened(words: Sequence[_Array], count: int) -> _Array:
        return np.array(words).view(dtype).astype(np.float64).reshape(32, count, 2)

    def multiply_all(operands: list[tuple[_Array, _Array, _Array]]) -> _Array:
        lefts, rights, sums = zip(*operands, strict=True)
        left = np.empty((16, 16))
        left[_LEFT] = widened(lefts, 4)
        columns = widened(rights, 4 * pairs).reshape(32, pairs, 2, 2, 2)
        if crossed:
            columns = columns.swapaxes(2, 3)
        columns = columns.reshape(32, 2 * pairs, 2, 2)
        before = np.array(sums).reshape(32, 2 * pairs, 2, 2)
        after = np.empty_like(before)
        for tile in range(2 * pairs):
            right = np.empty((16, 8))
            right[_RIGHT] = columns[:, tile]
            with np.errstate(invalid="ignore", over="ignore"):
                after[:, tile] = before[:, tile] + (left @ right)[_SUMS]
        return after.reshape(32, 2 * pairs, 4)

    def add(sums: _Array, first: int, left: _Array, start: int, right: _Array) -> None:
        operands = left[start : start + 4].copy(), right[: 4 * pairs].copy(), sums[first + places].copy()
        results, lane = exchange(operands, multiply_all)
        sums[first + places] = results[lane]

    return add
