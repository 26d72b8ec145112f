"""Runs: the same pairs as the mask, from tiles and from rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_sparse_attn import as_pattern, patterns
from numba_sparse_attn.analysis._panels import panels
from numba_sparse_attn.analysis._runs import runs_of
from numba_sparse_attn.patterns.catalogue import CATALOGUE
from numba_sparse_attn.testing import strategies


def mask_of(runs):
    mask = np.zeros(runs.shape, bool)
    for row in range(runs.shape[0]):
        last = -1
        for run in range(runs.indptr[row], runs.indptr[row + 1]):
            assert last < runs.starts[run] < runs.stops[run]
            last = runs.stops[run]
            mask[row, runs.starts[run] : last] = True
    return mask


@given(st.data())
def test_runs_of_rows_and_panels(data):
    n_q, n_k = data.draw(strategies.lengths(300)), data.draw(strategies.lengths(300))
    mask = data.draw(strategies.bool_masks(n_q, n_k))
    runs = runs_of(as_pattern(mask))
    np.testing.assert_array_equal(mask_of(runs), mask)
    np.testing.assert_array_equal(runs.row_counts, mask.sum(axis=1))
    again = np.zeros_like(mask)
    for panel in panels(runs):
        assert panel.seen.any(axis=0).all()
        again[panel.rows, panel.columns] |= panel.seen
    np.testing.assert_array_equal(again, mask)


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_runs_of_every_pattern(name):
    entry = CATALOGUE[name]
    for arguments in [*entry.examples, entry.scaled(300)]:
        for pattern in entry.patterns(arguments):
            np.testing.assert_array_equal(mask_of(runs_of(pattern)), pattern.toarray())


def test_runs_across_tiles_and_words():
    pattern = patterns.band(400, 200, 199) | patterns.global_tokens(400, [63, 64, 127, 128, 399])
    np.testing.assert_array_equal(mask_of(runs_of(pattern)), pattern.toarray())


def test_long_patterns_have_few():
    runs = runs_of(patterns.causal(65_536))
    assert len(runs.starts) == 65_536 and runs.row_counts.sum() == 65_536 * 65_537 // 2
