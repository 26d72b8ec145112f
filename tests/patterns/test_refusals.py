"""What patterns refuse, each with a sentence that says what was given, what is supported, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from numba_sparse_attn import PatternError, patterns

REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: patterns.sliding_window(8, -1), r"window=-1; supported: a whole number of at least 0"),
    (lambda: patterns.sliding_window(-8, 1), r"n=-8; supported"),
    (lambda: patterns.sliding_window(8.0, 1), r"n=8.0 of type float"),
    (
        lambda: patterns.sliding_window(2**41, 1),
        r"n=2199023255552; supported: a whole number from 0 to 1099511627776",
    ),
    (lambda: patterns.documents(np.array([2**63], np.uint64)), r"lengths with the value 9223372036854775808"),
    (lambda: patterns.tree([[0], [0, 1]], "self"), r"parents=\[\[0\], \[0, 1\]\]"),
    (lambda: patterns.sliding_window(True, 1), r"n=True of type bool"),
    (lambda: patterns.sliding_window(8, 1, causal=1), r"causal=1; supported: True or False"),
    (lambda: patterns.causal(4, align="left"), r"align='left'; supported: one of 'bottom-right', 'top-left'"),
    (lambda: patterns.band(4, 1, -2), r"right=-2"),
    (lambda: patterns.full(4, n_keys=-1), r"n_keys=-1"),
    (lambda: patterns.dilated_window(8, 1, 0), r"dilation=0; supported: a whole number of at least 1"),
    (lambda: patterns.dilated_window(8, 1, [2, 0]), r"dilation with the value 0 at position 1"),
    (lambda: patterns.dilated_window(8, 1, [2.0]), r"dilation=\[2.0\]"),
    (lambda: patterns.exponential_offsets(8, 0), r"base=0"),
    (lambda: patterns.adaptive_window([1, -1, 2]), r"widths with the value -1 at position 1"),
    (lambda: patterns.adaptive_window([(1, 2), (3,)]), r"widths=.*2 in every row"),
    (lambda: patterns.adaptive_window([(1, 2, 3)]), r"2 in every row"),
    (lambda: patterns.adaptive_window(3), r"widths=3"),
    (lambda: patterns.adaptive_window(np.zeros((2, 2, 2), int)), r"widths="),
    (lambda: patterns.block_local(8, 0), r"block=0; supported: a whole number of at least 1"),
    (lambda: patterns.documents([3, -1]), r"lengths with the value -1"),
    (lambda: patterns.documents([[3, 1]]), r"lengths="),
    (lambda: patterns.prefix(4, 5), r"length=5; supported: a whole number from 0 to 4"),
    (lambda: patterns.chunked_causal(8, 0), r"chunk=0"),
    (lambda: patterns.chunked_causal(8, 2, past=-1), r"past=-1"),
    (lambda: patterns.strided(8, 0, 1), r"stride=0"),
    (lambda: patterns.strided_heads(8, 1, -1), r"window=-1"),
    (lambda: patterns.fixed(8, 2, 3), r"summary=3; supported: a whole number from 0 to 2"),
    (lambda: patterns.global_tokens(8, [0, 8]), r"tokens with the value 8 at position 1; .* from 0 to 7"),
    (lambda: patterns.global_tokens(8, [-1]), r"tokens with the value -1"),
    (lambda: patterns.global_tokens(8, [0.5]), r"tokens=\[0.5\]"),
    (lambda: patterns.global_tokens(8, 3), r"tokens=3; supported: a sequence"),
    (lambda: patterns.global_tokens(8, np.array([True])), r"tokens=\[True\]"),
    (lambda: patterns.periodic_global(8, 0), r"stride=0"),
    (lambda: patterns.sink_window(8, -1, 2), r"sinks=-1"),
    (lambda: patterns.vertical_slash(8, [0], [8]), r"offsets with the value 8"),
    (lambda: patterns.vertical_slash(8, [9], [0]), r"columns with the value 9"),
    (lambda: patterns.random_keys(8, -1, 0), r"per_query=-1"),
    (
        lambda: patterns.random_keys(8, 1, -1),
        r"seed=-1; supported: a whole number from 0 to 18446744073709551615",
    ),
    (lambda: patterns.random_blocks(8, 2, 1, 2**64), r"seed=18446744073709551616"),
    (lambda: patterns.longformer(8, 1, [0], random=-1), r"random=-1"),
    (lambda: patterns.longformer(8, 1, [0], seed=0.5), r"seed=0.5 of type float"),
    (lambda: patterns.bigbird(8, 2, -1, 0, 0, 0), r"window_blocks=-1"),
    (lambda: patterns.axial((2, 3), 2), r"axis=2; supported: a whole number from -2 to 1"),
    (lambda: patterns.axial((2, 3), "rows"), r"axis='rows' of type str"),
    (lambda: patterns.axial((), "all"), r"shape=\(\); supported: a grid of at least 1 axes"),
    (lambda: patterns.axial((2, -3), 0), r"shape with the value -3"),
    (lambda: patterns.neighborhood((2, 2, 2, 2), 3), r"a grid of 1 or 2 or 3 axes"),
    (lambda: patterns.neighborhood((4, 4), (3, 3, 3)), r"kernel=\(3, 3, 3\) for a grid of 2 axes"),
    (lambda: patterns.neighborhood((4, 4), 0), r"kernel=0"),
    (lambda: patterns.neighborhood((4, 4), 3, dilation=(1, 0)), r"dilation with the value 0"),
    (lambda: patterns.shifted_windows((4, 4), 2, 2), r"shift=2 for window=2"),
    (lambda: patterns.shifted_windows((4, 4), (2, 2), (0, -1)), r"shift with the value -1"),
    (lambda: patterns.document_qa(8, 9, 1), r"question=9"),
    (lambda: patterns.document_qa(8, 2, 1, boundaries=[8]), r"boundaries with the value 8"),
    (lambda: patterns.indentation([0, -1], 1), r"levels with the value -1"),
    (lambda: patterns.indentation([0, 1], -1), r"window=-1"),
    (lambda: patterns.indentation_levels(b"x"), r"source of type bytes"),
    (lambda: patterns.tree([-1, 2], ["self"]), r"parents with the value 2 at position 1"),
    (lambda: patterns.tree([-2, 0], ["self"]), r"parents with the value -2"),
    (lambda: patterns.tree([1, 0, -1], ["self"]), r"token 0 never comes to a root"),
    (lambda: patterns.tree([0], "self"), r"token 0 never comes to a root"),
    (lambda: patterns.tree([-1], ["cousins"]), r"relations='cousins'; supported: one of 'self', 'ancestors'"),
    (lambda: patterns.tree([-1], ["self"], window=-1), r"window=-1"),
    (lambda: patterns.multiscale_grid((4,), 2), r"a grid of 2 axes"),
    (lambda: patterns.multiscale_grid((4, 4), 0), r"levels=0; supported: a whole number from 1 to 32"),
    (lambda: patterns.multiscale_grid((4, 4), 2, border=None), r"border=None"),
    (lambda: patterns.multimodal(4, (4, 4), [(0, 5, 0, 0, 1, 1)]), r"region 0, \(0, 5, 0, 0, 1, 1\)"),
    (lambda: patterns.multimodal(4, (4, 4), [(0, 1, 3, 0, 1, 1)]), r"top <= bottom <= height"),
    (lambda: patterns.multimodal(4, (4, 4), [(0, 1)]), r"regions=.*6 in every row"),
    (lambda: patterns.hierarchical_blocks(8, 2, 0), r"levels=0"),
    (lambda: patterns.landmarks(8, 1, [8]), r"positions with the value 8"),
    (lambda: patterns.block_diffusion(8, 0), r"block=0"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_refusal(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(PatternError, match=message) as caught:
        build()
    assert isinstance(caught.value, ValueError)
    assert caught.value.given
    assert caught.value.supported
    assert caught.value.advice
