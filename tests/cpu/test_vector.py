"""Vector building blocks against NumPy: every length around a vector, unaligned memory, special values."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn.cpu import vector
from numba_sparse_attn.jit import kernel

LENGTHS = (0, 1, 2, 7, 8, 15, 16, 17, 31, 63, 64, 65, 130, 257)

every_type = pytest.mark.parametrize("dtype", ["float32", "float64"])


@kernel
def call_dot(left, right, count):
    return vector.dot(left, vector.address_of(left), vector.address_of(right), count)


@kernel
def call_axpy(factor, source, target, count):
    vector.axpy(source, factor, vector.address_of(source), vector.address_of(target), count)


@kernel
def call_largest(source, count):
    return vector.largest(source, vector.address_of(source), count)


@kernel
def call_exp2_sum(source, count, shift, factor):
    return vector.exp2_sum(source, vector.address_of(source), count, shift, factor)


@kernel
def call_fill(target, count, value):
    vector.fill(target, vector.address_of(target), count, value)


@kernel
def call_has_non_finite(source, count):
    return vector.has_non_finite(source, vector.address_of(source), count)


def between_nan(values, dtype):
    """The values in memory that begins one element after a cache line, and all of that memory."""
    kind = np.dtype(dtype)
    memory = np.empty((len(values) + 40) * kind.itemsize + 64, np.uint8)
    begin = -memory.__array_interface__["data"][0] % 64
    whole = memory[begin : begin + (len(values) + 40) * kind.itemsize].view(kind)
    whole[:] = np.nan
    array = whole[1 : 1 + len(values)]
    array[:] = values
    return array, whole


def normal(count, dtype, seed=0):
    return between_nan(np.random.default_rng(seed).standard_normal(count), dtype)


def assert_rest_is_nan(whole, count):
    assert np.isnan(whole[0])
    assert np.isnan(whole[1 + count :]).all()


def exp2_of(values, dtype):
    array, _ = between_nan(values, dtype)
    call_exp2_sum(array, len(array), array.dtype.type(0), array.dtype.type(1))
    return array


def test_a_vector_is_no_narrower_than_what_every_machine_has():
    assert vector.vector_bytes() in (16, 32, 64)
    assert vector.lane_count(np.float32) == 2 * vector.lane_count(np.float64) == vector.vector_bytes() // 4


@every_type
@pytest.mark.parametrize("count", LENGTHS)
def test_dot(count, dtype):
    left, right = normal(count, dtype, 1)[0], normal(count, dtype, 2)[0]
    exact = left.astype(np.float64) @ right.astype(np.float64)
    bound = np.finfo(dtype).eps * (np.abs(left) @ np.abs(right) + 1e-30)
    assert abs(call_dot(left, right, count) - exact) <= (4 + count / 16) * bound


@every_type
@pytest.mark.parametrize("count", LENGTHS)
def test_axpy_writes_its_elements_only(count, dtype):
    source, (target, whole) = normal(count, dtype, 1)[0], normal(count, dtype, 2)
    expected = target + np.float64(1.5) * source
    call_axpy(source.dtype.type(1.5), source, target, count)
    np.testing.assert_allclose(target, expected, rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps)
    assert_rest_is_nan(whole, count)


@every_type
@pytest.mark.parametrize("count", LENGTHS)
def test_largest_passes_over_nan(count, dtype):
    source, _ = normal(count, dtype)
    source[::3] = np.nan
    rest = source[~np.isnan(source)]
    assert call_largest(source, count) == rest.max(initial=-np.inf)


@every_type
@pytest.mark.parametrize("count", LENGTHS)
def test_exp2_sum(count, dtype):
    source, whole = normal(count, dtype)
    expected = np.exp2((source.astype(np.float64) - 0.25) * 3.0)
    eps = np.finfo(dtype).eps
    total = call_exp2_sum(source, count, source.dtype.type(0.25), source.dtype.type(3.0))
    # The argument, up to 12, is rounded twice before it is an exponent.
    np.testing.assert_allclose(source, expected, rtol=16 * eps)
    assert abs(total - source.astype(np.float64).sum()) <= count * eps * expected.sum()
    assert_rest_is_nan(whole, count)


@every_type
@pytest.mark.parametrize("count", LENGTHS)
def test_fill_writes_its_elements_only(count, dtype):
    target, whole = normal(count, dtype)
    call_fill(target, count, target.dtype.type(2.0))
    assert (target == 2.0).all()
    assert_rest_is_nan(whole, count)


@every_type
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_has_non_finite_finds_one_wherever_it_is(value, dtype):
    source, _ = normal(67, dtype)
    source[3] = np.finfo(dtype).max
    assert not call_has_non_finite(source, 67)
    for place in range(67):
        dirty = source.copy()
        dirty[place] = value
        assert call_has_non_finite(dirty, 67), place
        assert not call_has_non_finite(dirty, place)


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 125.0), ("float64", 1021.0)])
def test_exp2_is_accurate_over_the_whole_range(dtype, limit):
    arguments = np.linspace(-limit, limit, 400_001).astype(dtype)
    expected = np.exp2(arguments.astype(np.longdouble))
    error = np.abs(exp2_of(arguments, dtype) / expected - 1)
    assert error.max() <= np.finfo(dtype).eps


@every_type
def test_exp2_is_exact_at_integers(dtype):
    arguments = np.arange(-120.0, 121.0)
    np.testing.assert_array_equal(exp2_of(arguments, dtype), np.exp2(arguments))


@every_type
def test_exp2_of_special_values(dtype):
    bias = {"float32": 127.0, "float64": 1023.0}[dtype]
    arguments = [-np.inf, -1e30, -bias - 20, -bias, bias + 1, 1e30, np.inf]
    expected = [0, 0, 0, 0, np.inf, np.inf, np.inf]
    assert exp2_of(arguments, dtype).tolist() == expected
    assert np.isnan(exp2_of([np.nan] * 40, dtype)).all()
