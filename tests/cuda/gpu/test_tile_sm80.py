"""Everything that ``test_tile.py`` asks of the tile engine, asked of its kernel on mma.sync."""

from __future__ import annotations

import pytest

from numba_sparse_attn.cuda import tile

from .test_tile import (  # noqa: F401
    pytestmark,
    test_a_captured_call_is_replayed,
    test_every_pattern,
    test_full_tiles_have_the_bits_of_partial_ones,
    test_head_dimensions_groups_and_rectangles,
    test_lengths,
    test_nan_that_is_selected_spoils_its_rows_and_no_others,
    test_no_keys_at_all,
    test_one_key_head_expanded_over_many,
    test_patterns_that_differ_between_batch_elements_and_heads,
    test_scales,
    test_scores_that_grow_along_the_row,
    test_strides,
    test_the_same_bits_a_thousand_times,
    test_what_no_query_selects_reaches_no_result,
)


@pytest.fixture(autouse=True)
def no_wgmma(monkeypatch):
    monkeypatch.setattr(tile, "has_wgmma", lambda device: False)
