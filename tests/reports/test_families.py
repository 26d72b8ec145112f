"""Patterns of one budget: they keep to it, use it up, and never look ahead."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from numba_sparse_attn import patterns
from reports.scenarios import code, language, retrieval
from reports.scenarios.families import DENSE, DENSITIES, FAMILIES, SEEDED, Lines, Text, make_pattern

N = 2048
TEXT = Text(
    N,
    Lines(np.tile([0, 1, 2, 1], N // 64), np.full(N // 16, 16)),
    opening=4,
    closing=3,
    boundaries=np.arange(20, N - 20, 25),
)
SPARSE = sorted(FAMILIES.keys() - {DENSE})


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("family", SPARSE)
def test_a_family_keeps_to_its_budget_and_uses_it(family: str, density: float) -> None:
    pattern = make_pattern(family, TEXT, density, 3)
    share = pattern.nnz / patterns.causal(N).nnz
    assert 0.95 * density < share <= density
    rows, columns = pattern.toarray().nonzero()
    assert (columns <= rows).all()
    # Every query sees itself: none is left without a key.
    assert np.isin(np.arange(N), rows[rows == columns]).all()


def test_dense_is_causal_attention() -> None:
    assert make_pattern(DENSE, TEXT, 1.0, 0).nnz == N * (N + 1) // 2


def test_seeds_change_what_draws_lots_and_nothing_else() -> None:
    short = Text(512, Lines(np.array([0, 1, 2, 1]), np.full(4, 128)))
    for family in SPARSE:
        first, second = (make_pattern(family, short, 0.25, seed) for seed in (0, 1))
        assert ((first ^ second).nnz > 0) == (family in SEEDED), family


def test_the_question_is_seen_by_all_and_its_repetition_sees_all() -> None:
    seen = make_pattern("document_qa", TEXT, 0.25, 0).toarray()
    assert seen[4:, :4].all()
    assert all(seen[row, : row + 1].all() for row in (N - 3, N - 2, N - 1))


def test_indentation_reaches_further_for_its_level_and_the_one_around_it() -> None:
    """To tokens of the same level, and from a block to the statements beside the one that opens it."""
    pattern = make_pattern("indentation", TEXT, 0.125, 0)
    rows, columns = (pattern - make_pattern("window", TEXT, 0.125, 0)).toarray().nonzero()
    assert TEXT.lines is not None and len(rows)
    levels = TEXT.lines.token_levels
    assert set(levels[rows] - levels[columns]) == {0, 1}
    assert make_pattern("sink_indentation", TEXT, 0.125, 0).toarray()[8:, :4].all()


def test_an_outline_shows_headers_and_its_ablations_do_without() -> None:
    """From the last line, of level 1, of a text whose lines are longer than the window."""
    text = Text(N, Lines(np.tile([0, 1, 2, 1], 4), np.full(16, 128)))
    seen = {name: make_pattern(name, text, 0.125, 0).toarray()[-1] for name in SPARSE if "outline" in name}

    def headers(name: str) -> list[int]:
        return [line for line in range(1, 14) if seen[name][128 * line : 128 * line + 12].all()]

    # Line 12 encloses it; lines 4 and 8 are beside that, line 13 is beside the last line itself.
    assert headers("outline") == headers("outline_without_landmarks") == [4, 8, 12, 13]
    assert headers("outline_without_siblings") == [12]
    first = {name: int(row[:128].sum()) for name, row in seen.items()}
    assert first == {"outline": 4, "outline_without_siblings": 4, "outline_without_landmarks": 0}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="take a higher density"):
        make_pattern("bigbird", Text(256), 0.01, 0)
    with pytest.raises(ValueError, match="needs the lines"):
        make_pattern("indentation", Text(256), 0.25, 0)


@pytest.mark.parametrize(
    ("families", "lengths", "densities"),
    [
        (language.SCENARIO.families, language.SCENARIO.lengths, DENSITIES),
        (code.SCENARIO.families, code.SCENARIO.lengths, DENSITIES),
        (retrieval.FAMILIES, retrieval.LENGTHS, retrieval.DENSITIES),
    ],
    ids=["language", "code", "retrieval"],
)
def test_what_is_run_without_options_fits(
    families: tuple[str, ...], lengths: tuple[int, ...], densities: tuple[float, ...]
) -> None:
    for length, density, family in product(lengths, densities, families):
        lines = Lines(np.tile([0, 1, 2, 1], length // 64), np.full(length // 16, 16))
        text = Text(length, lines, opening=16, closing=16, boundaries=np.arange(20, length - 20, 25))
        pattern = make_pattern(family, text, density, 0)
        assert pattern.nnz <= density * length * (length + 1) / 2


def test_every_family_is_run_somewhere() -> None:
    scenarios = {*language.FAMILIES, *code.SCENARIO.families, *retrieval.FAMILIES}
    assert scenarios == set(SPARSE)
