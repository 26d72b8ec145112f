"""Patterns against each other and against the computations that they stand for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_sparse_attn import Pattern, patterns

lengths = st.integers(0, 300)


@given(n=lengths, stride=st.integers(1, 40), window=st.integers(0, 40), causal=st.booleans())
def test_strided_is_the_union_of_its_heads(n: int, stride: int, window: int, causal: bool) -> None:
    local, steps = patterns.strided_heads(n, stride, window, causal=causal)
    assert patterns.strided(n, stride, window, causal=causal).equals(local | steps)


@given(n=lengths, block=st.integers(1, 40), summary=st.integers(0, 40), causal=st.booleans())
def test_fixed_is_local_blocks_and_strips(n: int, block: int, summary: int, causal: bool) -> None:
    """Both ways in which its summaries are drawn, lattices and strips."""
    summary = min(summary, block)
    ends = [column for column in range(n) if column % block >= block - summary]
    strips = patterns.landmarks(n, 0, ends) - patterns.sliding_window(n, 0)
    expected = patterns.block_local(n, block) | strips
    assert patterns.fixed(n, block, summary, causal=causal).equals(expected.causal() if causal else expected)


@given(n=st.integers(1, 300), window=st.integers(0, 40), data=st.data())
def test_longformer_is_the_union_of_its_parts(n: int, window: int, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(0, n - 1), max_size=4))
    local, hubs = patterns.sliding_window(n, window), patterns.global_tokens(n, tokens)
    assert patterns.longformer(n, window, tokens).equals(local | hubs)
    drawn = patterns.random_keys(n, 2, 3)
    assert patterns.longformer(n, window, tokens, random=2, seed=3).equals(local | hubs | drawn)


@given(n=lengths, past=st.integers(0, 5), chunk=st.integers(1, 50))
def test_chunks(n: int, past: int, chunk: int) -> None:
    assert patterns.chunked_causal(n, chunk, past=None).equals(patterns.causal(n))
    inside = patterns.chunked_causal(n, chunk, lookahead=True)
    assert inside.equals(patterns.block_local(n, chunk))
    assert (
        patterns.chunked_causal(n, chunk, past=past, lookahead=True)
        .causal()
        .equals(patterns.chunked_causal(n, chunk, past=past))
    )


@given(n=lengths)
def test_extremes_are_dense(n: int) -> None:
    full = patterns.full(n)
    assert patterns.sliding_window(n, n).equals(full)
    assert patterns.band(n, None, None).equals(full)
    assert patterns.block_local(n, max(n, 1)).equals(full)
    assert patterns.documents([n]).equals(full)
    assert patterns.prefix(n, n).equals(full)
    assert patterns.prefix(n, 0).equals(patterns.causal(n))
    assert patterns.strided(n, 1, 0).equals(full)
    assert patterns.periodic_global(n, 1).equals(full)
    assert patterns.random_keys(n, n, 0).equals(full)
    assert patterns.document_qa(n, n, 0).equals(full)
    assert patterns.neighborhood((n,), max(n, 1)).equals(full)
    assert patterns.axial((n,), 0).equals(full)
    assert patterns.indentation([1] * n, 0).equals(full)


@given(height=st.integers(0, 12), width=st.integers(0, 12), depth=st.integers(0, 3))
def test_all_axes_are_the_union_of_each(height: int, width: int, depth: int) -> None:
    shape = (height, depth, width)
    union = patterns.axial(shape, 0) | patterns.axial(shape, 1) | patterns.axial(shape, -1)
    assert patterns.axial(shape, "all").equals(union)


@given(widths=st.lists(st.integers(0, 300), max_size=300))
def test_adaptive_window_of_one_width_is_a_sliding_window(widths: list[int]) -> None:
    n = len(widths)
    assert patterns.adaptive_window([7] * n).equals(patterns.sliding_window(n, 7))
    assert patterns.adaptive_window([(7, 3)] * n).equals(patterns.band(n, 7, 3))
    pairs = [(width, width) for width in widths]
    assert patterns.adaptive_window(pairs).equals(patterns.adaptive_window(np.array(widths, np.int16)))


def swin_mask(height: int, width: int, window: int, shift: int) -> npt.NDArray[np.bool_]:
    """Cyclic shift, window partition, mask between the parts of a window that were not neighbors."""

    def label(length: int) -> npt.NDArray[np.int64]:
        regions = np.zeros(length, np.int64)
        regions[length - window : length - shift] = 1
        regions[length - shift :] = 2 if shift else 1
        return np.roll(regions * length + np.arange(length) // window, shift)

    y, x = (axis.reshape(-1) for axis in np.meshgrid(label(height), label(width), indexing="ij"))
    return (y[:, None] == y) & (x[:, None] == x)


@pytest.mark.parametrize(("height", "width", "window", "shift"), [(8, 8, 4, 2), (6, 9, 3, 1), (14, 14, 7, 3)])
def test_shifted_windows_are_what_a_masked_cyclic_shift_computes(
    height: int, width: int, window: int, shift: int
) -> None:
    expected = swin_mask(height, width, window, shift)
    np.testing.assert_array_equal(
        patterns.shifted_windows((height, width), window, shift).toarray(), expected
    )


@pytest.mark.parametrize("kernel", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_neighborhoods_at_borders_keep_their_size(kernel: int, dilation: int) -> None:
    counts = np.diff(patterns.neighborhood((21, 22), kernel, dilation=dilation).rows().indptr)
    assert (counts == kernel**2).all()


@given(st.lists(st.integers(-1, 40), max_size=40))
def test_relations_of_a_tree_mirror_each_other(older: list[int]) -> None:
    parents = [min(parent, token - 1) for token, parent in enumerate(older)]
    children, parent = patterns.tree(parents, "children"), patterns.tree(parents, "parent")
    assert children.T.equals(parent)
    siblings = patterns.tree(parents, "siblings")
    assert siblings.T.equals(siblings)
    assert (parent - patterns.tree(parents, "ancestors")).nnz == 0


@pytest.mark.parametrize("n", [1, 127, 1000])
def test_a_chain_of_ancestors_is_causal(n: int) -> None:
    assert patterns.tree(np.arange(-1, n - 1), ["self", "ancestors"]).equals(patterns.causal(n))
    upwards = patterns.tree([*range(1, n), -1], ["self", "ancestors"])
    assert upwards.equals(patterns.causal(n).T)


def test_causal_hierarchy_sees_summaries_of_whole_past_blocks() -> None:
    """Each block's summary is its last token, so nothing of the far past is lost by looking back only."""
    n, block = 512, 8
    pattern = patterns.hierarchical_blocks(n, block, 4).causal()
    csr = pattern.rows()
    for query in (100, 300, 511):
        keys = csr.indices[csr.indptr[query] : csr.indptr[query + 1]]
        far = keys[keys // block < query // block - 1]
        # Ends of blocks that tile the past up to the block before the query's neighbor.
        sizes = np.diff(far, prepend=-1)
        assert far[-1] == (query // block - 1) * block - 1
        assert (sizes % block == 0).all()
        assert (np.diff(sizes) <= 0).all()  # coarser with distance


@pytest.mark.parametrize("n", [1, 63, 64, 65, 640, 1000])
@pytest.mark.parametrize("levels", [1, 3, 7])
def test_hierarchy_keeps_its_bound(n: int, levels: int) -> None:
    block = 8
    bound = n * (3 * block + 3 * (levels - 1) + n / (block * 2 ** (levels - 1)) + levels)
    assert patterns.hierarchical_blocks(n, block, levels).nnz <= bound


def seen_after(pattern: Pattern, layers: int) -> npt.NDArray[np.bool_]:
    """What every query has heard of after some layers: powers of the mask."""
    mask = pattern.toarray().astype(np.float64)
    seen = np.eye(len(mask))
    for _ in range(layers):
        seen = np.minimum(mask @ seen, 1)
    return seen > 0


def test_stated_reach() -> None:
    """What the docstrings say about layers."""
    n = 120

    def reach(pattern: Pattern, layers: int) -> bool:
        return bool(seen_after(pattern, layers).all())

    assert reach(patterns.full(n), 1)
    assert reach(patterns.exponential_offsets(n, 1), 7)
    assert reach(patterns.strided(n, 10, 9), 2)
    assert not reach(patterns.strided(n, 10, 8), 2)
    assert reach(patterns.fixed(n, 10, 1), 2)
    assert reach(patterns.longformer(n, 1, [60]), 2)
    assert reach(patterns.bigbird(n, 10, 1, 1, 0, 0), 2)
    assert reach(patterns.periodic_global(n, 40), 2)
    assert reach(patterns.axial((10, 12), "all"), 2)
    assert reach(patterns.axial((4, 5, 6), "all"), 3)
    assert reach(patterns.document_qa(n, 1, 0), 2)
    assert all(reach(patterns.hierarchical_blocks(n, 4, levels), levels + 1) for levels in (1, 2, 3, 4))
    assert reach(patterns.landmarks(n, 5, range(5, n, 11)), 2)
    assert not reach(patterns.landmarks(n, 5, range(5, n, 13)), 2)
    assert not reach(patterns.block_local(n, 10), 50)
    assert reach(patterns.multiscale_grid((16, 12), 3, window=4, border=False), 3)
    text, grid = 10, (9, 12)
    seen = seen_after(patterns.multimodal(text, grid, [(0, 3, 2, 2, 7, 7)], levels=3), 2)
    assert seen[:text].all()
