"""The linear and low-rank family on a GPU: what NumPy makes of the same arrays, computed where they lie."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn import approx

from .libraries import each_of, fetch, put

pytestmark = pytest.mark.gpu


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


FEATURES = approx.Features.draw(16, 40)
CALLS = {
    "performer": (
        lambda *a: approx.performer_vjp(*a, FEATURES),
        (draw(2, 4, 70, 16), *draw(2, 2, 2, 70, 16)),
    ),
    "performer, causal": (
        lambda *a: approx.performer_vjp(*a, FEATURES, causal=True),
        (draw(2, 4, 200, 16), *draw(2, 2, 2, 200, 16)),
    ),
    "linformer": (
        approx.linformer_vjp,
        (draw(2, 4, 30, 16), *draw(2, 2, 2, 60, 16), *draw(2, 8, 60) / 8),
    ),
    "synthesizer": (
        lambda *a: approx.synthesizer_vjp(*a, causal=True),
        (draw(4, 50, 60), draw(2, 2, 40, 16)),
    ),
}


@each_of("torch", "cupy", "jax")
@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_numpy(name, library):
    function, arrays = CALLS[name]
    out, pullback = function(*arrays)
    there = [put(library, array) for array in arrays]
    result, pullback_there = function(*there)
    assert type(result) is type(there[0])
    gradients = pullback_there(result)
    for found, expected in zip((result, *gradients), (out, *pullback(out)), strict=True):
        # The same sums of float64 in another order: some hundred roundings at most.
        assert np.abs(fetch(library, found) - expected).max() <= 1e-12 * max(1.0, np.abs(expected).max())
