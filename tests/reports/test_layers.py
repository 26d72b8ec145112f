"""Gradients written by hand, against differences of the results."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from numba_sparse_attn import patterns
from reports.scenarios import layers
from reports.scenarios.families import DENSE
from reports.scenarios.grids import GRID_FAMILIES, make_grid
from reports.scenarios.training import ByteModel
from reports.scenarios.transformer import (
    WARM_UP,
    Shape,
    gradient_norms,
    initial,
    learning_rate,
)
from reports.scenarios.vision import VisionModel, pyramid

Doubles = npt.NDArray[np.float64]

RNG = np.random.default_rng(0)
SHAPE = Shape(layers=2, width=16, heads=2)
TOKENS = 24


def normal(*shape: int) -> Doubles:
    return np.random.default_rng([*shape]).standard_normal(shape)


def slope(value: Callable[[], float], at: Doubles, direction: Doubles) -> float:
    """The derivative of `value` as `at`, which it reads, moves along a direction: of fourth order."""
    step, kept = 1e-4, at.copy()
    found = []
    for times in (-2, -1, 1, 2):
        at[...] = kept + times * step * direction
        found.append(value())
    at[...] = kept
    return (found[0] - 8 * found[1] + 8 * found[2] - found[3]) / (12 * step)


def check(value: Callable[[], float], arrays: dict[str, Doubles], gradients: dict[str, Doubles]) -> None:
    """Every array along three directions; the largest slopes are the yardstick of all."""
    assert gradients.keys() == arrays.keys()
    for name, array in arrays.items():
        assert gradients[name].shape == array.shape, name
        for _ in range(3):
            direction = RNG.standard_normal(array.shape) / np.sqrt(array.size)
            found = slope(value, array, direction)
            scale = np.linalg.norm(gradients[name]) / np.sqrt(array.size)
            assert float(np.vdot(gradients[name], direction)) == pytest.approx(
                found, rel=1e-6, abs=1e-6 * scale + 1e-11
            ), name


WINDOW = patterns.sliding_window(6, 2)
TARGETS = np.array([[0, 3], [1, 1], [2, 0]])
NUMBERS = np.array([[0, 2, 2], [1, 0, 2]])

CASES: dict[str, tuple[Callable[..., tuple[Any, layers.Back]], tuple[tuple[int, ...], ...]]] = {
    "linear": (layers.linear, ((2, 3, 4), (4, 5), (5,))),
    "normalise": (layers.normalise, ((2, 3, 8), (8,), (8,))),
    "gelu": (layers.gelu, ((3, 7),)),
    "embed": (lambda table: layers.embed(table, NUMBERS), ((4, 5),)),
    "attend": (lambda qkv: layers.attend(qkv, 2, WINDOW), ((2, 6, 24),)),
    "attend_turned": (
        lambda qkv: layers.attend(qkv, 2, WINDOW, layers.rotation(6, 4, np.float64)),
        ((2, 6, 24),),
    ),
    "cross_entropy": (lambda logits: layers.cross_entropy(logits, TARGETS), ((3, 2, 4),)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_way_back_is_the_slope(name: str) -> None:
    layer, shapes = CASES[name]
    arguments = {str(at): normal(*shape) for at, shape in enumerate(shapes)}
    result, back = layer(*arguments.values())
    weights = RNG.standard_normal(result.shape)
    found = {str(at): gradient for at, gradient in enumerate(back(weights))}
    check(lambda: float(np.vdot(layer(*arguments.values())[0], weights)), arguments, found)


def test_turned_scores_depend_on_the_distance_alone() -> None:
    turn = layers.rotation(9, 8, np.float64)
    q, k = normal(8), normal(8)[::-1].copy()
    turned = [(row.view(np.complex128) * turn).view(np.float64) for row in (q, k)]
    scores = turned[0] @ turned[1].T
    for distance in range(-8, 9):
        assert np.ptp(np.diagonal(scores, distance)) < 1e-12
    assert np.ptp(scores[0]) > 0.1


def test_gradients_of_the_language_model_are_the_slopes() -> None:
    model = ByteModel(SHAPE)
    parameters = model.parameters(0, np.float64)
    sequences = np.random.default_rng(1).integers(256, size=(2, TOKENS + 1))
    pattern = patterns.sliding_window(TOKENS, 5, causal=True)

    losses, back = model.losses(parameters, sequences, pattern)
    gradients = back(np.full_like(losses, 1 / losses.size))
    check(lambda: float(model.losses(parameters, sequences, pattern)[0].mean()), parameters, gradients)


@pytest.mark.parametrize("family", GRID_FAMILIES)
def test_gradients_of_the_vision_model_are_the_slopes(family: str) -> None:
    grid = make_grid(family, 8, SHAPE.layers, 1.0 if family == DENSE else 0.25, 0)
    model = VisionModel(SHAPE, grid, 64)
    parameters = model.parameters(0, np.float64)
    values = pyramid(np.random.default_rng(2).random((3, 8, 8)), grid.levels)
    targets = np.array([1, 0, 9])

    def loss() -> tuple[float, Callable[[], dict[str, Any]]]:
        logits, back = model.logits(parameters, values)
        losses, back_losses = layers.cross_entropy(logits, targets)
        return float(losses.sum()), lambda: back(*back_losses(np.ones_like(losses)))

    check(lambda: loss()[0], parameters, loss()[1]())


def test_parameters_are_drawn_by_their_names() -> None:
    shorter, longer = (
        initial({"positions.table": (rows, 8), **SHAPE.parameter_shapes()}, 3) for rows in (64, 84)
    )
    assert np.array_equal(longer["positions.table"][:64], shorter["positions.table"])
    assert all(np.array_equal(longer[name], shorter[name]) for name in SHAPE.parameter_shapes())
    assert not np.array_equal(longer["layer_0.up.weight"], longer["layer_1.up.weight"])
    assert not np.array_equal(
        longer["layer_0.up.weight"], initial(SHAPE.parameter_shapes(), 4)["layer_0.up.weight"]
    )


def test_gradient_norms_are_by_layer() -> None:
    found = gradient_norms(
        {"layer_0.a": np.array([3.0]), "layer_0.b": np.array([4.0]), "bytes.table": np.array([2.0])}
    )
    assert found == {"layer_0": 5.0, "bytes": 2.0}


def test_the_learning_rate_rises_and_stays_or_falls() -> None:
    assert [learning_rate(step, 1.0) for step in (0, WARM_UP - 1, 10_000)] == [1 / WARM_UP, 1.0, 1.0]
    falling = [learning_rate(step, 1.0, 100) for step in range(WARM_UP, 120)]
    assert falling[0] == 1.0 and falling[-1] == pytest.approx(0.1)
    assert all(now >= after for now, after in pairwise(falling))
