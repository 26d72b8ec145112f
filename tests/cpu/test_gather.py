"""Products with scattered rows: every count and width, sums in an order that is the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn.cpu import gather
from numba_sparse_attn.cpu.vector import address_of, lane_count
from numba_sparse_attn.jit import inlined

every_type = pytest.mark.parametrize("dtype", ["float32", "float64"])
COUNTS = [*range(1, 18), 100]


@inlined
def list_rows(indices, first, count, base, stride, target):
    address = address_of(indices)
    gather.list_rows(address, indices.itemsize, first, count, base, stride, address_of(target))


@inlined
def gather_dot(query, rows, offset, count, vectors, target):
    gather.gather_dot(query, address_of(query), address_of(rows), offset, count, vectors, address_of(target))


@inlined
def gather_axpy(weights, rows, offset, count, vectors, target):
    gather.gather_axpy(
        weights, address_of(weights), address_of(rows), offset, count, vectors, address_of(target)
    )


@inlined
def gather_elements(source, indices, first, count, target):
    address = address_of(indices)
    gather.gather_elements(
        source, address_of(source), address, indices.itemsize, first, count, address_of(target)
    )


@inlined
def multiply(target, count, factor):
    gather.multiply(target, address_of(target), count, factor)


@inlined
def probabilities(scores, products, shifts, deltas, factor, count):
    addresses = address_of(scores), address_of(products), address_of(shifts), address_of(deltas)
    gather.probabilities(scores, *addresses, factor, count)


def start(array):
    return array.__array_interface__["data"][0]


def draw(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def listed(matrix, chosen):
    """The list of some rows of a matrix, closed as the intrinsics want it."""
    rows = start(matrix) + matrix.strides[0] * np.asarray(chosen)
    return np.concatenate((rows, np.repeat(rows[-1:], gather.GROUP)))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("stride", [512, -7, 0, 2**31 - 1, -(2**31)])
def test_lists_of_addresses(stride, index, count):
    indices = np.random.default_rng(count).integers(0, 2**31 - 1, count + 3).astype(index)
    target = np.full(count + gather.GROUP + 1, 7, np.int64)
    list_rows(indices, 3, count, 10**15, stride, target)
    expected = 10**15 + stride * indices[3:].astype(np.int64)
    np.testing.assert_array_equal(target[:count], expected)
    assert (target[count:-1] == expected[-1]).all() and target[-1] == 7


def test_wide_indices_and_strides():
    target = np.zeros(2 + gather.GROUP, np.int64)
    list_rows(np.array([2**33, 3]), 0, 2, 5, 2**28, target)
    assert target[:2].tolist() == [5 + 2**61, 5 + 3 * 2**28]


@every_type
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("vectors", [1, 2, 4, 9])
def test_dots(vectors, count, dtype):
    width = vectors * lane_count(dtype)
    matrix, query = draw((50, 3 * width), dtype), draw(width, dtype, 1)
    chosen = np.random.default_rng(count).integers(0, 50, count)
    whole = -(-count // gather.GROUP) * gather.GROUP
    target = np.full(whole + 1, 7, dtype)
    gather_dot(query, listed(matrix, chosen), width * query.itemsize, count, vectors, target)
    expected = matrix[chosen, width : 2 * width].astype(np.longdouble) @ query
    np.testing.assert_allclose(target[:count], expected.astype(dtype), atol=width * np.finfo(dtype).eps)
    assert target[-1] == 7


@every_type
def test_dots_have_the_same_bits_in_every_place_and_either_role(dtype):
    width = 3 * lane_count(dtype)
    rows = draw((gather.GROUP + 1, width), dtype)
    places = np.empty(gather.GROUP, dtype)
    gather_dot(rows[-1], listed(rows, [0] * gather.GROUP), 0, gather.GROUP, 3, places)
    assert (places == places[0]).all()
    gather_dot(rows[0].copy(), listed(rows, [gather.GROUP] * gather.GROUP), 0, gather.GROUP, 3, places)
    assert places[0].tobytes() == places[-1].tobytes()
    reversed_role = places[0]
    gather_dot(rows[-1].copy(), listed(rows, range(gather.GROUP)), 0, gather.GROUP, 3, places)
    assert places[0] == reversed_role


@every_type
@pytest.mark.parametrize("count", [0, *COUNTS])
@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 7, 8, 13, 16, 25])
def test_weighted_sums(vectors, count, dtype):
    width = vectors * lane_count(dtype)
    matrix, weights = draw((50, 2 * width), dtype), draw(max(count, 1), dtype, 1)
    chosen = np.random.default_rng(count).integers(0, 50, max(count, 1))
    target = draw(width + 1, dtype, 2)
    expected = target[:-1] + weights[:count].astype(np.longdouble) @ matrix[chosen[:count], width:]
    last = target[-1]
    gather_axpy(weights, listed(matrix, chosen), width * weights.itemsize, count, vectors, target)
    eps = (count + 2) * np.finfo(dtype).eps
    np.testing.assert_allclose(target[:-1], expected.astype(dtype), rtol=0, atol=4 * eps)
    assert target[-1] == last


@every_type
def test_only_listed_rows_reach_a_sum(dtype):
    width = lane_count(dtype)
    matrix = np.full((9, width), np.nan, dtype)
    matrix[4] = 2
    target = np.zeros(width, dtype)
    gather_axpy(np.array([0.5, np.nan], dtype), listed(matrix, [4, 5]), 0, 1, 1, target)
    assert (target == 1).all()


@every_type
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_elements(index, dtype):
    source, indices = draw(20, dtype), np.array([9, 9, 3, 19, 0], index)
    target = np.full(5, 7, dtype)
    gather_elements(source, indices, 1, 4, target)
    assert target.tolist() == [*source[indices[1:]].tolist(), 7]


@every_type
@pytest.mark.parametrize("count", [0, 1, 7, 16, 37])
def test_probabilities_and_their_gradients(count, dtype):
    scores, products, shifts, deltas = (draw(count + 1, dtype, seed) for seed in range(4))
    shifts += 8
    expected = np.exp2(scores.astype(float) * 1.5 - shifts)
    gradient = expected * (products.astype(float) - deltas)
    expected[-1], gradient[-1] = scores[-1], products[-1]
    probabilities(scores, products, shifts, deltas, np.dtype(dtype).type(1.5), count)
    tolerance = 30 * np.finfo(dtype).eps
    np.testing.assert_allclose(scores, expected, rtol=tolerance)
    np.testing.assert_allclose(products, gradient, rtol=tolerance, atol=tolerance * 0.1)


@every_type
def test_a_probability_is_at_most_one_and_nan_stays(dtype):
    scores = np.array([5, np.nan, np.inf, -np.inf], dtype)
    products, shifts, deltas = np.ones(4, dtype), np.full(4, 4.9, dtype), np.zeros(4, dtype)
    probabilities(scores, products, shifts, deltas, np.dtype(dtype).type(1), 4)
    np.testing.assert_array_equal(scores, [1, np.nan, 1, 0])


@every_type
@pytest.mark.parametrize("count", [0, 1, 7, 16, 37])
def test_multiples(count, dtype):
    values = draw(count + 1, dtype)
    expected = values * np.dtype(dtype).type(-1.5)
    expected[-1] = values[-1]
    multiply(values, count, np.dtype(dtype).type(-1.5))
    assert values.tobytes() == expected.tobytes()
