"""Everything that ``test_tile_backward.py`` asks of the tile engine, asked of its kernels on mma.sync."""

from __future__ import annotations

from .test_tile_backward import (  # noqa: F401
    pytestmark,
    test_a_captured_call_is_replayed,
    test_every_pattern,
    test_full_tiles_have_the_bits_of_partial_ones,
    test_head_dimensions_groups_and_rectangles,
    test_lengths,
    test_nan_that_is_selected_spoils_what_selects_it_and_nothing_else,
    test_no_keys_and_no_queries,
    test_one_key_head_expanded_over_many,
    test_patterns_that_differ_between_batch_elements_and_heads,
    test_scales,
    test_strides,
    test_the_same_bits_a_thousand_times,
    test_unequal_and_odd_dimensions,
    test_what_takes_part_in_no_pair_reaches_no_result,
)
from .test_tile_sm80 import no_wgmma  # noqa: F401
