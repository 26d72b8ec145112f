"""Register-blocked products and the softmax steps between them, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn.cpu import products, softmax
from numba_sparse_attn.cpu.operands import aligned_empty
from numba_sparse_attn.cpu.vector import address_of, lane_count
from numba_sparse_attn.jit import kernel

every_type = pytest.mark.parametrize("dtype", ["float32", "float64"])
every_count = pytest.mark.parametrize("count", [1, 3, 8, 13, 128])


@kernel
def call_score(like, rows, count, panel, depth, target):
    products.score_rows(like, address_of(rows), count, address_of(panel), depth, address_of(target))


@kernel
def call_mix(like, rows, count, weights, depth, target):
    products.mix_rows(like, address_of(rows), count, address_of(weights), depth, address_of(target))


@kernel
def call_mix_masked(like, rows, count, weights, depth, target, masks):
    products.mix_rows_masked(
        like, address_of(rows), count, address_of(weights), depth, address_of(target), address_of(masks)
    )


@kernel
def call_spread(like, targets, count, weights, panel_rows, depth, spare):
    products.spread_rows(
        like,
        address_of(targets),
        count,
        address_of(weights),
        address_of(panel_rows),
        depth,
        address_of(spare),
    )


@kernel
def call_transpose(source, rows, columns, factors, target):
    size = source.itemsize
    return products.transpose(
        source,
        address_of(source),
        columns * size,
        rows,
        columns,
        address_of(factors),
        address_of(target),
        rows * size,
    )


@kernel
def start(like, state):
    softmax.start_softmax(like, address_of(state))


@kernel
def step(scores, count, masks, masked, state, factor):
    return softmax.softmax_rows(
        scores,
        address_of(scores),
        count,
        address_of(masks),
        masked,
        address_of(state),
        scores.dtype.type(factor),
    )


@kernel
def finish(like, state, target):
    softmax.finish_softmax(like, address_of(state), address_of(target))


@kernel
def call_gradient(like, scores, values, count, masks, statistics, scale):
    softmax.gradient_rows(
        like,
        address_of(scores),
        address_of(values),
        count,
        address_of(masks),
        address_of(statistics),
        like.dtype.type(scale),
    )


def matrix(rows, columns, dtype, seed):
    array = aligned_empty(rows * columns, dtype).reshape(rows, columns)
    array[:] = np.random.default_rng(seed).standard_normal((rows, columns))
    return array


def addresses_of(array, order, room=products.ROWS):
    """List of the addresses of some rows, with room after it."""
    listed = np.full(len(order) + room, -1, np.int64)
    listed[: len(order)] = array.__array_interface__["data"][0] + np.asarray(order) * array.strides[0]
    return listed


def masks_of(bits):
    return np.sum(bits.astype(np.uint64) << np.arange(bits.shape[1], dtype=np.uint64), axis=1).astype(
        np.int64
    )


@every_type
@every_count
@pytest.mark.parametrize("depth", [1, 5, 64])
def test_scores_of_scattered_rows(depth, count, dtype):
    panel = products.panel_size(dtype)
    source, columns = matrix(200, depth, dtype, 1), matrix(depth, panel, dtype, 2)
    order = np.random.default_rng(3).permutation(200)[:count]
    target = matrix(count + products.ROWS, panel, dtype, 4)
    call_score(target, addresses_of(source, order), count, columns, depth, target)
    expected = source[order].astype(np.float64) @ columns
    np.testing.assert_allclose(target[:count], expected, rtol=0, atol=20 * depth * np.finfo(dtype).eps)


@every_type
@every_count
@pytest.mark.parametrize("depth", [8, 64])
def test_mixtures_of_scattered_rows(depth, count, dtype):
    panel = products.panel_size(dtype)
    source, weights = matrix(200, depth, dtype, 1), matrix(count, panel, dtype, 2)
    order = np.random.default_rng(3).permutation(200)[:count]
    target = matrix(depth, panel, dtype, 4)
    expected = target + source[order].T.astype(np.float64) @ weights
    call_mix(target, addresses_of(source, order), count, weights, depth, target)
    np.testing.assert_allclose(target, expected, rtol=0, atol=20 * count * np.finfo(dtype).eps)


@every_type
def test_a_masked_mixture_never_multiplies_what_it_leaves_out(dtype):
    panel = products.panel_size(dtype)
    source, weights = matrix(30, 16, dtype, 1), matrix(30, panel, dtype, 2)
    bits = np.random.default_rng(3).random((30, panel)) < 0.5
    source[7] = np.nan
    source[9, 3] = np.inf
    bits[[7, 9]] = False
    bits[7, 1] = True
    target = np.zeros((16, panel), dtype)
    call_mix_masked(target, addresses_of(source, range(30)), 30, weights, 16, target, masks_of(bits))
    clean = np.where(np.isfinite(source), source, 0.0).astype(np.float64)
    expected = clean.T @ np.where(bits, weights, 0.0)
    expected[:, 1] = np.nan
    np.testing.assert_allclose(target, expected, rtol=0, atol=600 * np.finfo(dtype).eps)


@every_type
@every_count
def test_spreading_over_scattered_rows(count, dtype):
    panel = products.panel_size(dtype)
    depth = 2 * panel
    targets, weights = matrix(200, depth, dtype, 1), matrix(count + products.ROWS, panel, dtype, 2)
    weights[count:] = np.nan
    panel_rows, spare = matrix(panel, depth, dtype, 3), np.zeros(depth, dtype)
    order = np.random.default_rng(4).permutation(200)[:count]
    expected = targets.astype(np.float64)
    expected[order] += weights[:count].astype(np.float64) @ panel_rows
    call_spread(targets, addresses_of(targets, order), count, weights, panel_rows, depth, spare)
    np.testing.assert_allclose(targets, expected, rtol=0, atol=20 * panel * np.finfo(dtype).eps)


@every_type
@pytest.mark.parametrize("value", [1.0, np.nan, -np.inf])
def test_transposition(value, dtype):
    lanes = lane_count(dtype)
    rows, columns = 2 * lanes, 5 * lanes
    source, factors = matrix(rows, columns, dtype, 1), matrix(1, columns, dtype, 2)[0]
    source[rows - 1, 3] = value
    target = np.empty((columns, rows), dtype)
    assert call_transpose(source, rows, columns, factors, target) == (not np.isfinite(value))
    np.testing.assert_array_equal(target, (source * factors).T)


@every_type
def test_online_softmax_over_several_steps(dtype):
    panel = products.panel_size(dtype)
    rng = np.random.default_rng(0)
    counts = (13, 1, 40, 8)
    scores = matrix(sum(counts), panel, dtype, 1) * 30
    bits = rng.random(scores.shape) < 0.4
    bits[: counts[0], 2] = False  # a lane that sees its first key in a later step
    bits[counts[0] : counts[0] + 1] = True  # a step without masks
    scores[~bits] = np.nan
    state = np.full((softmax.STATE_ROWS, panel), np.nan, dtype)
    start(scores, state)
    weights = np.zeros(scores.shape)
    begin = 0
    for count in counts:
        end = begin + count
        some = scores[begin:end].copy()
        changed = step(some, count, masks_of(bits[begin:end]), not bits[begin:end].all(), state, 0.7)
        assert changed or (state[2] == 1).all()
        weights[:begin] *= state[2].astype(np.float64)
        weights[begin:end] = some
        begin = end
    inverse = np.empty(panel, dtype)
    finish(state, state, inverse)
    masked = np.where(bits, scores, -np.inf).astype(np.float64)
    expected = np.exp2(np.float64(scores.dtype.type(0.7)) * (masked - masked.max(axis=0)))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(weights, expected, rtol=200 * eps, atol=eps)
    assert (weights[~bits] == 0).all()
    np.testing.assert_allclose(inverse, 1 / expected.sum(axis=0), rtol=200 * eps)


@every_type
def test_scores_of_minus_infinity_are_not_the_same_as_no_keys(dtype):
    panel = products.panel_size(dtype)
    scores = np.full((2, panel), -np.inf, dtype)
    bits = np.zeros((2, panel), bool)
    bits[0, 1] = bits[1, 2] = True
    scores[1, 2] = 5.0
    state = np.empty((softmax.STATE_ROWS, panel), dtype)
    start(scores, state)
    step(scores, 2, masks_of(bits), True, state, 0.7)
    inverse = np.empty(panel, dtype)
    finish(state, state, inverse)
    assert np.isnan(inverse[1])
    assert inverse[2] == 1
    assert (inverse[3:] == 0).all()
    assert (state[0, 3:] == -np.inf).all()


@every_type
def test_weights_and_gradients_of_scores(dtype):
    panel, count, scale = products.panel_size(dtype), 21, 0.3
    scores, values = matrix(count, panel, dtype, 1), matrix(count, panel, dtype, 2)
    statistics = matrix(count, 2, dtype, 3)
    bits = np.random.default_rng(4).random((count, panel)) < 0.5
    scores[~bits] = np.nan
    values[~bits] = np.inf
    expected = np.exp(scale * np.where(bits, scores, -np.inf).astype(np.float64) - statistics[:, :1])
    gradients = expected * (np.where(bits, values, 0.0) - statistics[:, 1:]) * scale
    listed = addresses_of(statistics, range(count))
    call_gradient(scores, scores, values, count, masks_of(bits), listed, scale)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(scores, expected, rtol=20 * eps)
    np.testing.assert_allclose(values, np.where(bits, gradients, 0.0), rtol=40 * eps, atol=eps)
