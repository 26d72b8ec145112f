"""Refusals carry three clauses, survive pickling and are caught the way a NumPy user would try."""

from __future__ import annotations

import pickle

import pytest

from numba_sparse_attn import errors

KINDS = [getattr(errors, name) for name in errors.__all__ if name != "SparseAttentionError"]
BUILT_IN = {
    errors.ShapeError: ValueError,
    errors.DtypeError: TypeError,
    errors.PatternError: ValueError,
    errors.FormatError: ValueError,
    errors.ArgumentError: ValueError,
    errors.EngineError: RuntimeError,
}


@pytest.mark.parametrize("kind", KINDS)
def test_message_says_given_supported_and_what_to_do(kind: type[errors.SparseAttentionError]) -> None:
    error = kind("a list", "an array", "call np.asarray")
    assert str(error) == "given: a list; supported: an array; what to do: call np.asarray."
    assert (error.given, error.supported, error.advice) == ("a list", "an array", "call np.asarray")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_caught_as_ours_and_as_built_in(kind: type[errors.SparseAttentionError]) -> None:
    for caught in (errors.SparseAttentionError, BUILT_IN[kind]):
        with pytest.raises(caught):
            raise kind("x", "y", "z")


@pytest.mark.parametrize("kind", KINDS)
def test_pickling_keeps_the_clauses(kind: type[errors.SparseAttentionError]) -> None:
    """An exception crosses a process pool by pickling; one with its own __init__ easily does not."""
    copy = pickle.loads(pickle.dumps(kind("x", "y", "z")))
    assert type(copy) is kind
    assert (copy.given, copy.supported, copy.advice) == ("x", "y", "z")


def test_the_package_exports_every_kind() -> None:
    import numba_sparse_attn as nsa

    for name in errors.__all__:
        assert getattr(nsa, name) is getattr(errors, name)
