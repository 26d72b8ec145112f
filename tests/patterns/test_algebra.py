"""Set operations, transposition, heads and conversions of patterns, against dense masks."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.sparse
from hypothesis import event, given
from hypothesis import strategies as st

from numba_sparse_attn.errors import FormatError, PatternError, ShapeError
from numba_sparse_attn.formats.pieces import make_pieces
from numba_sparse_attn.patterns.convert import as_pattern
from numba_sparse_attn.patterns.heads import HeadPatterns
from numba_sparse_attn.patterns.pattern import Pattern


def _lister(mask):
    def rows(begin, end):
        panel = mask[begin:end]
        return np.concatenate([[0], np.cumsum(panel.sum(axis=1))]).astype(np.int64), np.nonzero(panel)[1]

    return rows


@st.composite
def pattern_pairs(draw):
    """Two patterns of one shape with their masks: pieces, rows made on demand, or CSR."""
    shape = (draw(st.integers(0, 300)), draw(st.integers(0, 300)))
    difference = np.arange(shape[1])[None] - np.arange(shape[0])[:, None]
    made = []
    for _ in range(2):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        kind = draw(st.sampled_from(["pieces", "rows", "csr"]))
        event(kind)
        if kind == "pieces":
            low, width, step, axis = (
                int(rng.integers(*bounds)) for bounds in ((-200, 200), (0, 99), (1, 5), (0, 3))
            )
            pieces = make_pieces(
                rows=(0, shape[0]),
                columns=(0, shape[1]),
                differences=(low, low + width),
                axis=axis,
                step=step,
            )
            pattern = Pattern.from_pieces(shape, pieces)
            counted = (np.arange(shape[0])[:, None], np.arange(shape[1])[None], difference)[axis]
            mask = (difference >= low) & (difference <= low + width) & (counted % step == 0)
        else:
            mask = rng.random(shape) < rng.choice([0.0, 0.003, 0.3, 1.0])
            pattern = as_pattern(mask) if kind == "csr" else Pattern.from_rows(shape, _lister(mask))
        made.append((pattern, mask))
    return made


@given(pattern_pairs())
def test_set_operations(pair):
    (left, left_mask), (right, right_mask) = pair
    for made, expected in (
        (left | right, left_mask | right_mask),
        (left & right, left_mask & right_mask),
        (left - right, left_mask & ~right_mask),
        (left ^ right, left_mask ^ right_mask),
        (~left, ~left_mask),
        (left.T, left_mask.T),
        ((left | right).T, (left_mask | right_mask).T),
        ((~left & right).T, (~left_mask & right_mask).T),
    ):
        assert made.shape == expected.shape
        assert made.nnz == expected.sum(), made
        np.testing.assert_array_equal(made.toarray(), expected)
        assert made.tiles().nnz == expected.sum()
    offset = left.shape[1] - left.shape[0]
    np.testing.assert_array_equal(left.causal().toarray(), np.tril(left_mask, offset))
    assert left.equals(left | left) and (left | right).equals(right | left)


@given(pattern_pairs())
def test_conversions_round_trip(pair):
    pattern, mask = pair[0]
    for form in (pattern.tocsr(), pattern.tocoo(), pattern.tobsr((1, 1)), pattern.toarray()):
        assert as_pattern(form).equals(pattern)
    indices = pattern.toindices()
    assert indices.dtype == np.int64 and indices.shape[0] == pattern.shape[0]
    assert as_pattern(indices, keys=pattern.shape[1]).equals(pattern)
    assert pattern.tocsr().has_canonical_format
    assert pattern.sparsity == (1 - mask.sum() / mask.size if mask.size else 0.0)


def test_operands_may_be_arrays_on_either_side():
    pattern = Pattern.from_pieces((6, 6), make_pieces(rows=(0, 6), columns=(0, 6), differences=(0, 0)))
    mask = np.tri(6, k=-2, dtype=bool)
    for made in (pattern | mask, mask | pattern, pattern | scipy.sparse.csr_array(mask)):
        np.testing.assert_array_equal(made.toarray(), np.eye(6, dtype=bool) | mask)
    np.testing.assert_array_equal((mask - pattern).toarray(), mask)
    np.testing.assert_array_equal((mask ^ pattern).toarray(), mask | np.eye(6, dtype=bool))
    np.testing.assert_array_equal((mask & pattern).toarray(), np.zeros((6, 6), bool))
    with pytest.raises(TypeError):
        pattern | 3


def test_operands_of_other_shapes_are_refused():
    left, right = as_pattern(np.ones((3, 3), bool)), as_pattern(np.ones((3, 4), bool))
    with pytest.raises(ShapeError, match="one shape"):
        left | right
    with pytest.raises(ShapeError, match="one shape for all heads"):
        as_pattern([left, right])


def test_membership_save_and_load(tmp_path):
    pattern = as_pattern(np.tri(5, dtype=bool))
    assert (3, 2) in pattern and (2, 3) not in pattern and (5, 0) not in pattern
    pattern.save(tmp_path / "causal.npz")
    assert Pattern.load(tmp_path / "causal.npz").equals(pattern)
    np.testing.assert_array_equal(scipy.sparse.load_npz(tmp_path / "causal.npz").toarray(), pattern.toarray())


def test_engine_forms_are_computed_once_and_frozen():
    pattern = as_pattern(np.tri(300, dtype=bool))
    assert pattern.tiles() is pattern.tiles() and pattern.rows() is pattern.rows()
    with pytest.raises(ValueError, match="read-only"):
        pattern.rows().indices[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        pattern.tiles().pool[0, 0, 0] = 1


def test_a_symbolic_pattern_stays_small():
    n = 1 << 20
    pattern = Pattern.from_pieces((n, n), make_pieces(rows=(0, n), columns=(0, n), differences=(-256, 256)))
    assert len(pickle.dumps(pattern)) < 2000
    assert pattern.nnz == 513 * n - 256 * 257
    assert pattern.tiles().nbytes < 2_000_000


def test_head_patterns():
    causal, eye = as_pattern(np.tri(4, dtype=bool)), as_pattern(np.eye(4, dtype=bool))
    mixed = causal.heads(2) + eye.heads(1)
    assert len(mixed) == 3 and mixed.shape == (4, 4) and mixed.nnz == 24
    assert mixed[2].equals(eye) and len(mixed[:2]) == 2
    assert [p.nnz for p in mixed & eye] == [4, 4, 4]
    assert [p.nnz for p in mixed | causal.heads(3)] == [10, 10, 10]
    assert [p.nnz for p in ~mixed] == [6, 6, 12]
    assert [p.nnz for p in mixed.T.causal()] == [4, 4, 4]
    assert [p.nnz for p in eye | mixed] == [10, 10, 4]
    assert [p.nnz for p in np.ones((4, 4), bool) - mixed] == [6, 6, 12]
    assert [p.nnz for p in mixed ^ causal] == [0, 0, 6]
    assert mixed.sparsity == 0.5
    batched = as_pattern([[causal, eye], [eye, eye]])
    assert batched.member_of.shape == (2, 2) and batched[1][0].equals(eye)
    with pytest.raises(PatternError, match="same number of heads"):
        as_pattern([[causal, eye], [eye]])
    with pytest.raises(PatternError, match="at least one head"):
        causal.heads(0)
    with pytest.raises(PatternError, match="at least one"):
        HeadPatterns([], [])


@pytest.mark.parametrize("value", [None, "causal", 3, {"a": 1}])
def test_what_is_no_pattern_is_refused(value):
    with pytest.raises(FormatError, match="convert it"):
        as_pattern(value)


def test_blocks_must_divide():
    with pytest.raises(FormatError, match="block"):
        as_pattern(np.ones((6, 6), bool)).tobsr((4, 4))
