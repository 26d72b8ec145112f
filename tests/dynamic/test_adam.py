"""Adam by what it has to do."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn.dynamic import Adam


def test_adam_moves_by_the_rate_at_first_and_finds_the_minimum() -> None:
    parameters = {"x": np.array([3.0, -2.0]), "y": np.array([[1e-3]])}
    lowest = {"x": np.array([1.0, 5.0]), "y": np.array([[2.0]])}
    optimiser = Adam(parameters)
    before = {name: value.copy() for name, value in parameters.items()}
    for step in range(2000):
        gradients = {name: 2 * (value - lowest[name]) for name, value in parameters.items()}
        optimiser.step(gradients, 0.05 * 0.995**step)
        if step == 0:
            for name, value in parameters.items():
                assert np.abs(value - before[name]) == pytest.approx(0.05, rel=1e-4)
    for name, value in parameters.items():
        assert value == pytest.approx(lowest[name], abs=1e-2)


def test_adam_scales_long_gradients_down_all_together() -> None:
    """Two steps with gradients of norm 1 and 50 are two steps with the same gradient of norm 1."""
    one, other = ({"x": np.zeros(2)} for _ in range(2))
    first, second = Adam(one), Adam(other)
    direction = np.array([0.6, 0.8])
    for scale in (1.0, 50.0):
        first.step({"x": scale * direction}, 0.1)
        second.step({"x": direction}, 0.1)
    assert np.array_equal(one["x"], other["x"]) and np.all(one["x"] < 0)
