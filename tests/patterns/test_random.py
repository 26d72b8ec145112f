"""Random patterns: the same bits everywhere, distinct keys, and no key more likely than another."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_sparse_attn import patterns
from numba_sparse_attn.patterns._random import chosen, distinct_choices, splitmix64


def test_splitmix64_has_the_published_outputs() -> None:
    assert list(islice(splitmix64(1234567), 5)) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_choices_never_change() -> None:
    """A change here breaks every model that was trained with a random pattern."""
    keys = patterns.random_keys(1000, 3, 42).toindices()
    assert keys[:3].tolist() == [[317, 668, 802], [644, 853, 926], [179, 511, 597]]
    blocks = patterns.random_blocks(1024, 16, 2, 7).tobsr((16, 16)).indices
    assert blocks[:8].tolist() == [5, 62, 32, 36, 0, 6, 4, 60]


@given(
    seed=st.integers(0, 2**64 - 1),
    rows=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30), st.integers(0, 30)), max_size=8),
)
def test_choices_are_the_first_distinct_words(seed: int, rows: list[tuple[int, int, int]]) -> None:
    number, count, limit = np.array(rows, np.int64).reshape(-1, 3).T
    count = np.minimum(count, limit)
    indptr, choices = distinct_choices(seed, number, count, limit)
    assert np.diff(indptr).tolist() == count.tolist()
    for place, (row, wanted, most) in enumerate(
        zip(number.tolist(), count.tolist(), limit.tolist(), strict=True)
    ):
        found = choices[indptr[place] : indptr[place + 1]].tolist()
        assert found == sorted(chosen(seed, row, wanted, most))


@pytest.mark.parametrize("per_query", [1, 10, 190, 199])
def test_every_key_is_as_likely(per_query: int) -> None:
    n = 200
    keys = sum(patterns.random_keys(n, per_query, seed).toarray().sum(axis=0) for seed in range(20))
    expected = 20.0 * per_query
    spread = np.sqrt(20 * n * (per_query / n) * (1 - per_query / n))
    chi_squared = float((((keys - expected) / spread) ** 2).sum())
    # n - 1 degrees of freedom, five standard deviations.
    assert abs(chi_squared - (n - 1)) < 5 * np.sqrt(2 * (n - 1))


def test_rows_and_seeds_differ() -> None:
    first, second = (patterns.random_keys(500, 8, seed).toindices() for seed in (0, 1))
    assert len(np.unique(first, axis=0)) == 500
    assert (first != second).any(axis=1).all()


def test_rows_do_not_depend_on_the_panel() -> None:
    """Rows drawn together or alone are the same, also where a panel needs further draws."""
    n, per_query = 64, 60
    whole = patterns.random_keys(n, per_query, 5).toindices()
    for row in range(n):
        ask = np.array([row])
        _, keys = distinct_choices(5, ask, np.array([per_query]), np.array([n]))
        assert keys.tolist() == whole[row].tolist()
