"""The statistics, on values whose answers are known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from reports.scenarios.comparison import bootstrap_interval, compare, complete_rows, holm, paired_p
from reports.scenarios.runs import Row


def row(document: str, family: str, value: float, *, density: float = 0.5, depth: float = 0.5) -> Row:
    text = {"document": document, "digest": "0", "tokens": 9, "depth": depth}
    fields = {**text, "family": family, "density": density}
    return {**fields, "pairs": 45 * density, "value": value}


def test_permutation_test_is_the_share_of_signs_that_are_as_extreme() -> None:
    first, second = np.array([3.0, 1.0, 4.0, 1.5, 9.0]), np.array([2.0, 2.5, 1.0, 1.0, 2.0])
    difference = first - second
    sums = [abs(np.dot(signs, difference)) for signs in product((-1, 1), repeat=5)]
    assert paired_p(first, second) == pytest.approx(np.mean(np.array(sums) >= abs(difference.sum()) - 1e-12))
    assert paired_p(np.arange(1, 9), np.zeros(8)) == 2 / 2**8


def test_holm_multiplies_by_the_tests_that_are_left() -> None:
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    assert holm([0.01, 0.02, 0.5, 0.9]) == pytest.approx([0.04, 0.06, 1.0, 1.0])
    assert holm([0.9, 0.001]) == pytest.approx([0.9, 0.002])


def test_interval_holds_the_mean_and_has_the_known_width() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    mean, low, high = bootstrap_interval(values)
    assert mean == values.mean() and low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert bootstrap_interval([2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_comparison_pairs_documents_and_averages_within_them() -> None:
    names = [f"d{number}" for number in range(8)]
    rows = [row(name, "dense", at, density=1.0) for at, name in enumerate(names)]
    rows += [row(name, "near", at + shift) for at, name in enumerate(names) for shift in (0.5, 1.5)]
    rows += [row(name, "far", at + 3.0) for at, name in enumerate(names)]
    dense, near, far = compare(rows, lambda one: one["value"])
    assert [dense.family, near.family, far.family] == ["dense", "near", "far"]
    assert near.to_dense == (1.0, 1.0, 1.0) and far.to_dense == (3.0, 3.0, 3.0)
    assert near.share == 0.5 and near.documents == 8
    assert near.best and not far.best and near.p_best is None
    # Three tests, each as small as eight documents allow.
    assert [near.p_dense, far.p_dense, far.p_best] == pytest.approx([3 * 2 / 2**8] * 3)
    best_first = compare(rows, lambda one: one["value"], higher_is_better=True)
    assert [line.family for line in best_first] == ["dense", "far", "near"]


def test_an_interrupted_family_is_left_out() -> None:
    rows = [row(name, "dense", 1.0, density=1.0) for name in "abc"]
    rows += [row(name, "whole", 2.0) for name in "ab"] + [row("a", "cut", 1.0)]
    assert {one["family"] for one in complete_rows(rows)} == {"dense", "whole"}
    # A third document is being added: only one family has it yet.
    families = ("first", "second", "third")
    rows = [row(name, family, 1.0) for name in "ab" for family in families]
    assert complete_rows([*rows, row("c", "first", 1.0)]) == rows
    # The same document at fewer depths is another mean.
    rows = [row("a", "whole", 2.0, depth=depth) for depth in (0.1, 0.9)] + [row("a", "cut", 2.0, depth=0.1)]
    assert {one["family"] for one in complete_rows(rows)} == {"whole"}
