"""One warp's matrix products with every form of the instructions, for the simulator and for a GPU."""

from __future__ import annotations

import functools

import numpy as np
from numba import cuda, float32, int32, int64, types

from numba_sparse_attn.cuda.device import fragments, lanes

#: Addresses of left (16, 16), keys (32, 16), values (16, 32) and of results, float32 (2, 16, 32).
PRODUCTS_SIGNATURE = types.void(*[types.int64] * 4)
_LEFT, _KEYS, _VALUES = 16 * 16 * 2, 32 * 16 * 2, 16 * 32 * 2
SHARED_BYTES = _LEFT + _KEYS + _VALUES + 128


@functools.cache
def make_products(kind):
    """The kernel: what is in memory plus ``left @ keys.T``, and plus ``left @ values``."""
    room = fragments.large_room(SHARED_BYTES)
    place_of, store_word, sync_warp = fragments.place_of, fragments.store_shared_int32, fragments.sync_warp
    load_left = fragments.load_matrices(1, 0, transposed=False)
    load_keys = fragments.load_matrices(2, 16 * 32, transposed=False)
    load_values = fragments.load_matrices(2, 32, transposed=True)
    multiply_keys = fragments.multiply(kind, 2, 8, crossed=True)
    multiply_values = fragments.multiply(kind, 2, 8, crossed=False)
    load_int32, load_float32 = lanes.load_int32, lanes.load_element("float32")
    store_float32 = lanes.store_element("float32")

    @cuda.jit(device=True, inline="always")
    def to_shared(source, target, words):
        lane = int64(cuda.threadIdx.x)
        for turn in range(words // 32):
            word = 32 * turn + lane
            store_word(place_of(target + 4 * int32(word)), load_int32(source + 4 * word))

    def kernel(left, keys, values, results):
        lane = int32(cuda.threadIdx.x)
        base = room()
        to_shared(left, base, _LEFT // 4)
        to_shared(keys, place_of(base + _LEFT), _KEYS // 4)
        to_shared(values, place_of(base + _LEFT + _KEYS), _VALUES // 4)
        sync_warp()
        factors = cuda.local.array(4, int32)
        right = cuda.local.array(8, int32)
        sums = cuda.local.array(32, float32)
        at = results + int64(lane >> 2) * 128 + (lane & 3) * 8
        for e in range(32):
            place = at + (e // 16) * 2048 + (e // 4 % 4) * 32 + (e // 2 % 2) * 1024 + e % 2 * 4
            sums[e] = load_float32(place)
        line, half = int32(lane & 15), int32(lane >> 4)
        load_left(factors, 0, place_of(base + line * 32 + half * 16))
        load_keys(right, 0, place_of(base + _LEFT + line * 32 + half * 16))
        multiply_keys(sums, 0, factors, 0, right)
        load_values(right, 0, place_of(base + _LEFT + _KEYS + line * 64 + half * 16))
        multiply_values(sums, 16, factors, 0, right)
        for e in range(32):
            place = at + (e // 16) * 2048 + (e // 4 % 4) * 32 + (e // 2 % 2) * 1024 + e % 2 * 4
            store_float32(place, sums[e])

    return kernel


def operands(dtype, seed=0):
    """Random matrices for the kernel, and what it makes of them in float64."""
    rng = np.random.default_rng(seed)
    left, keys, values = (
        rng.standard_normal(shape).astype(dtype) for shape in ((16, 16), (32, 16), (16, 32))
    )
    results = rng.standard_normal((2, 16, 32)).astype(np.float32)
    wide_left, wide_keys, wide_values = (array.astype(np.float64) for array in (left, keys, values))
    expected = results + np.stack([wide_left @ wide_keys.T, wide_left @ wide_values])
    return (left, keys, values, results), expected
