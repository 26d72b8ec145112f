"""Gradient flow against products of dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import analysis, as_pattern, patterns
from numba_sparse_attn.testing import random_problem, strategies

from .dense import probabilities


def uniform(mask):
    """Every key of a query weighs the same; heads are averaged."""
    counts = mask.sum(axis=-1, keepdims=True)
    weights = np.divide(mask, counts, out=np.zeros(mask.shape), where=counts > 0)
    return weights if mask.ndim == 2 else weights.mean(axis=-3)


@given(st.data(), st.integers(0, 4), st.sampled_from([0.0, 0.5, 1.0]))
def test_uniform_weights(data, depth, residual):
    n = data.draw(strategies.lengths(70, smallest=1))
    masks = [data.draw(strategies.bool_masks(n, n)) for _ in range(data.draw(st.integers(1, 2)))]
    tokens = [n - 1, n // 2]
    flow = analysis.gradient_flow(*masks, depth=depth, residual=residual, tokens=tokens)
    mass = np.eye(n)[tokens]
    expected = [mass]
    for layer in reversed(range(depth)):
        mass = residual * mass + (1 - residual) * mass @ uniform(masks[layer % len(masks)])
        expected.append(mass)
    np.testing.assert_allclose(flow.mass, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(flow.total, np.sum(expected, axis=-1), atol=1e-12)
    np.testing.assert_array_equal(flow.reached, np.mean(np.array(expected) > 0.0, axis=-1))
    for layer, place in np.ndindex(depth + 1, 2):
        share = expected[layer][place]
        if share.sum() == 0.0:
            assert flow.positions[layer, place] == 0.0 and np.isnan(flow.distance[layer, place])
            continue
        share = share / share.sum()
        some = share > 0.0
        count = np.exp(-np.sum(share[some] * np.log(share[some])))
        assert flow.positions[layer, place] == pytest.approx(count)
        away = np.sum(share * np.abs(np.arange(n) - tokens[place]))
        assert flow.distance[layer, place] == pytest.approx(away, abs=1e-12)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_real_weights_of_grouped_heads(batch):
    mask = patterns.sliding_window(40, 5, causal=True).toarray()
    made = random_problem(mask, heads=4, kv_heads=2, head_dim=8, batch=batch)
    flow = analysis.gradient_flow(
        as_pattern(mask), depth=3, q=made.q, k=made.k, residual=0.25, tokens=[39, 7]
    )
    weights = probabilities(made, mask).mean(axis=-3)
    mass = np.broadcast_to(np.eye(40)[[39, 7]], (*batch, 2, 40))
    for layer in range(4):
        np.testing.assert_allclose(flow.mass[..., layer, :, :], mass, rtol=1e-9, atol=1e-12)
        mass = 0.25 * mass + 0.75 * mass @ weights
    assert flow.mass.shape == (*batch, 4, 2, 40)


def test_every_layer_its_own_weights():
    """The last layer's come first on the way down; patterns take turns, with their heads."""
    local, far = patterns.sliding_window(30, 2, causal=True), patterns.strided(30, 6, 0, causal=True)
    stack = local.heads(1) + far.heads(1)
    layers = [random_problem(local.toarray(), heads=2, head_dim=4, seed=seed) for seed in range(3)]
    q, k = [layer.q for layer in layers], [layer.k for layer in layers]
    flow = analysis.gradient_flow(stack, local, depth=3, q=q, k=k, residual=0.0)
    masks = [np.stack([local.toarray(), far.toarray()]), local.toarray()]
    mass = np.eye(30)[[29]]
    for layer in (2, 1, 0):
        mass = mass @ probabilities(layers[layer], masks[layer % 2]).mean(axis=-3)
        np.testing.assert_allclose(flow.mass[3 - layer], mass, rtol=1e-9, atol=1e-12)


def test_arrays_without_heads():
    q, k = np.random.default_rng(0).standard_normal((2, 20, 4))
    flat = analysis.gradient_flow(patterns.causal(20), depth=2, q=q, k=k)
    headed = analysis.gradient_flow(patterns.causal(20), depth=2, q=q[None], k=k[None])
    np.testing.assert_allclose(flat.mass, headed.mass, rtol=1e-12)


def test_mass_goes_where_the_receptive_field_is():
    pattern = patterns.bigbird(300, 16, 1, 1, 1, 0)
    field = analysis.receptive_field(pattern, depth=3, queries=[299])
    flow = analysis.gradient_flow(pattern, depth=3)
    for layers in range(4):
        reached = (field.first_layer[0] >= 0) & (field.first_layer[0] <= layers)
        np.testing.assert_array_equal(flow.mass[layers, 0] > 0.0, reached)


def test_refusals():
    window = patterns.sliding_window(8, 1)
    q = np.zeros((8, 4))
    cases = [
        ({"depth": -1}, "depth"),
        ({"depth": 1, "residual": 1.5}, "residual"),
        ({"depth": 1, "q": q}, "one of q and k"),
        ({"depth": 1, "tokens": [8]}, "tokens"),
        ({"depth": 1, "tokens": []}, "tokens"),
        ({"depth": 2, "q": [q], "k": [q]}, "1 arrays as q"),
    ]
    for arguments, words in cases:
        with pytest.raises(nsa.ArgumentError, match=words):
            analysis.gradient_flow(window, **arguments)
    with pytest.raises(nsa.ShapeError, match="square"):
        analysis.gradient_flow(patterns.full(8, n_keys=9), depth=1)
    with pytest.raises(nsa.PatternError, match="no layer"):
        analysis.gradient_flow(depth=1)
