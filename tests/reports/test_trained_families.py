"""Patterns of one budget for images and for texts that are read at once: they keep to it and use it."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn import patterns
from reports.scenarios import embeddings, vision
from reports.scenarios.families import DENSE
from reports.scenarios.grids import GRID_FAMILIES, make_grid
from reports.scenarios.two_sided import TWO_SIDED_FAMILIES, make_two_sided

SIDE, LAYERS = 8, 4


@pytest.mark.parametrize("density", embeddings.DENSITIES)
@pytest.mark.parametrize("length", embeddings.LENGTHS)
@pytest.mark.parametrize("family", embeddings.FAMILIES)
def test_a_family_of_texts_keeps_to_its_budget_and_uses_it(family: str, length: int, density: float) -> None:
    pattern = make_two_sided(family, length, density, 0)
    assert 0.94 * density < pattern.nnz / length**2 <= density
    # Every query sees itself, and some of what comes after it.
    seen = pattern.toarray() > 0
    assert seen.diagonal().all() and np.triu(seen, 1).any()


@pytest.mark.parametrize("family", vision.FAMILIES)
def test_a_family_of_images_keeps_to_its_budget_and_uses_it(family: str) -> None:
    (density,) = vision.DENSITIES
    grid = make_grid(family, SIDE, LAYERS, density, 0)
    assert len(grid.patterns) == LAYERS
    # Windows that are moved are cut at the borders: their layers use less.
    assert 0.75 * density < grid.pairs / SIDE**4
    for pattern in grid.patterns:
        assert pattern.nnz <= density * SIDE**4
        assert pattern.shape == (grid.tokens, grid.tokens)
        assert pattern.toarray().diagonal().all()


def test_dense_is_every_pair() -> None:
    assert make_two_sided(DENSE, 300, 1.0, 0).nnz == 300**2
    grid = make_grid(DENSE, SIDE, LAYERS, 1.0, 0)
    assert grid.pairs == SIDE**4 and grid.tokens == SIDE**2


def test_families_of_images_are_what_they_are_called() -> None:
    shape = (SIDE, SIDE)

    def differing(family: str, first: int = 0, second: int = 1) -> int:
        layers = make_grid(family, SIDE, LAYERS, 0.25, 0).patterns
        return (layers[first] ^ layers[second]).nnz

    grids = {name: make_grid(name, SIDE, LAYERS, 0.25, 0) for name in GRID_FAMILIES if name != DENSE}
    assert grids["multiscale"].tokens == 64 + 16 + 4
    assert (grids["neighborhood"].patterns[0] ^ patterns.neighborhood(shape, 4)).nnz == 0
    assert (grids["axial"].patterns[0] ^ patterns.axial(shape, "all")).nnz == 0
    for family in ("dilated_neighborhood", "shifted_windows", "random"):
        assert differing(family) > 0
    assert differing("shifted_windows", 0, 2) == 0 and differing("random", 0, 2) > 0


def test_seeds_change_random_cells() -> None:
    first, second = (make_grid("random", SIDE, LAYERS, 0.25, seed).patterns[0] for seed in (0, 1))
    assert (first ^ second).nnz > 0


def test_what_does_not_fit_is_refused() -> None:
    for family in vision.FAMILIES:
        with pytest.raises(ValueError, match="take a higher density"):
            make_grid(family, SIDE, LAYERS, 0.01, 0)
    for family in embeddings.FAMILIES:
        with pytest.raises(ValueError, match="take a higher density"):
            make_two_sided(family, 256, 1e-4, 0)


def test_all_families_are_run() -> None:
    assert {*vision.FAMILIES, DENSE} == GRID_FAMILIES.keys()
    assert {*embeddings.FAMILIES, DENSE} == TWO_SIDED_FAMILIES.keys()
