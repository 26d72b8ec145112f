"""Conversions between memory and compute type: every 16-bit value in, every kind of float32 out."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from numba_sparse_attn.cpu.elements import head_addresses, load_row, store_row, type_code
from numba_sparse_attn.jit import inlined
from numba_sparse_attn.testing import DTYPES

HALVES = [DTYPES["float16"], DTYPES["bfloat16"]]

every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@inlined
def load(code, address, stride, count, destination, offset):
    load_row(code, address, stride, count, destination, offset)


@inlined
def store(code, address, stride, count, source, offset):
    store_row(code, address, stride, count, source, offset)


def address_of(array):
    return array.__array_interface__["data"][0]


def loaded(array, compute=np.float32):
    """A one-dimensional array as the kernel sees it, between two margins that have to survive."""
    result = np.full(array.size + 10, 7, compute)
    load(type_code(array.dtype), address_of(array), array.strides[0], array.size, result, 5)
    assert (result[:5] == 7).all() and (result[-5:] == 7).all()
    return result[5:-5]


def store_into(array, values):
    """Write `values`, which the kernel finds behind three others, to a one-dimensional array."""
    source = np.concatenate((np.full(3, np.nan, values.dtype), values))
    store(type_code(array.dtype), address_of(array), array.strides[0], array.size, source, 3)


def same(actual, expected):
    """Equal bits, and NaN where NaN is expected."""
    assert actual.dtype == expected.dtype
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    bits = np.dtype(f"u{expected.itemsize}")
    np.testing.assert_array_equal(
        np.where(nan, 0, actual.view(bits)), np.where(nan, 0, np.ascontiguousarray(expected).view(bits))
    )


def converted(values, dtype):
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype)


@every_half
@pytest.mark.parametrize("step", [1, 3, -1])
def test_every_half_is_widened_exactly(dtype, step):
    spread = np.zeros(65536 * abs(step), dtype)
    view = spread[::step]
    view[...] = np.arange(65536, dtype=np.uint16).view(dtype)
    same(loaded(view), converted(view, np.float32))


@every_half
@pytest.mark.parametrize("step", [1, 2, -3])
def test_random_bits_are_narrowed_like_astype(dtype, step):
    """Random bits have all exponents alike: subnormal, normal, too large, infinite, NaN."""
    bits = np.random.default_rng(0).integers(0, 2**32, 1 << 18, dtype=np.uint32)
    values = bits.view(np.float32)
    target = np.zeros(values.size * abs(step), dtype)[::step]
    store_into(target, values)
    same(target, converted(values, dtype))


@every_half
def test_ties_and_their_neighbors_are_narrowed_like_astype(dtype):
    """Every half, the middle between it and the next one, and what lies next to each of these."""
    halves = np.arange(65536, dtype=np.uint16).view(dtype)
    exact = converted(halves, np.float64)
    exact = np.sort(exact[np.isfinite(exact)])
    middles = (exact[1:] + exact[:-1]) / 2
    limit = float(ml_dtypes.finfo(dtype).max)
    edge = limit * (1 + np.array([0, 1, 2, 4, 1024]) * float(ml_dtypes.finfo(dtype).eps) / 4)
    points = converted(np.concatenate((exact, middles, edge, -edge)), np.float32)
    values = np.concatenate(
        [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
    )
    target = np.zeros(values.size, dtype)
    store_into(target, values)
    same(target, converted(values, dtype))


@every_half
def test_special_values_are_narrowed_like_astype(dtype):
    tiny = np.array([1, 0x7FFFFF, 0x800000], np.uint32).view(np.float32)
    quiet_and_signalling = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    zeros_and_infinities = np.array([0.0, -0.0, np.inf, -np.inf], np.float32)
    values = np.concatenate((zeros_and_infinities, tiny, -tiny, quiet_and_signalling))
    target = np.zeros(values.size, dtype)
    store_into(target, values)
    same(target, converted(values, dtype))


@every_dtype
@pytest.mark.parametrize("size", [*range(36), 100, 1000])
def test_any_count_there_and_back(dtype, size):
    """Vectors, what is left over behind them, and nothing before or after."""
    compute = np.float64 if dtype == np.float64 else np.float32
    values = np.random.default_rng(size).standard_normal(size).astype(dtype)
    same(loaded(values, compute), values.astype(compute))
    for step in (1, 2, -1):
        memory = np.full((size + 4) * abs(step), 9, dtype)
        view = memory[::step][2 : size + 2]
        store_into(view, values.astype(compute))
        same(np.ascontiguousarray(view), values)
        view[...] = 9
        assert (memory == 9).all()


@every_dtype
def test_a_stride_of_zero_repeats_one_element(dtype):
    compute = np.float64 if dtype == np.float64 else np.float32
    row = np.broadcast_to(np.array([1.5], dtype), (20,))
    same(loaded(row, compute), np.full(20, 1.5, compute))


@every_dtype
def test_addresses_need_no_alignment(dtype):
    compute = np.float64 if dtype == np.float64 else np.float32
    values = np.linspace(-3, 3, 50).astype(dtype)
    memory = np.zeros(values.nbytes + 1, np.uint8)
    view = memory[1:].view(dtype)
    store_into(view, values.astype(compute))
    assert view.tobytes() == values.tobytes()
    same(loaded(view, compute), values.astype(compute))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a,
        lambda a: a[::-1, :, ::-2],
        lambda a: a.transpose(2, 0, 1, 3, 4),
        lambda a: a.swapaxes(1, 3),
        lambda a: np.broadcast_to(a[:1, :, :1], a.shape),
        lambda a: a[:, :0],
        lambda a: a[:, :, :0],
        lambda a: a[0],
        lambda a: a[0, 0],
    ],
)
@pytest.mark.parametrize("item_axes", [1, 2])
def test_addresses_of_heads(change, item_axes):
    array = change(np.zeros((2, 3, 4, 5, 6), np.float32))
    addresses = head_addresses(array, item_axes)
    lead = array.shape[: array.ndim - item_axes]
    assert addresses.dtype == np.int64
    assert addresses.shape == (np.prod(lead[:-1], dtype=int), lead[-1])
    expected = [address_of(array[index]) for index in np.ndindex(*lead)]
    assert addresses.reshape(-1).tolist() == expected
