"""Every pattern of the catalogue against its definition; a new pattern is tested without an edit here."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse
from hypothesis import event, given
from hypothesis import strategies as st

from numba_sparse_attn import Pattern, PatternError, patterns
from numba_sparse_attn.patterns.catalogue import CATALOGUE, Entry

ATLAS = Path(__file__).resolve().parents[2] / "patterns"
EXAMPLES = [
    pytest.param(entry, arguments, id=f"{entry.name}-{number}")
    for entry in CATALOGUE.values()
    for number, arguments in enumerate(entry.examples)
]
by_entry = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=list(CATALOGUE))
by_example = pytest.mark.parametrize(("entry", "arguments"), EXAMPLES)
#: Long enough that every pattern crosses the edge of a tile.
BEYOND_A_TILE = 200
LONG = 65_536


def dense(made: list[Pattern]) -> npt.NDArray[np.bool_]:
    """All heads below one another, as `Entry.brute_force` gives them."""
    return np.concatenate([pattern.toarray() for pattern in made])


def check(entry: Entry, arguments: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """The pattern is what its definition says, and has as many pairs as its formula says."""
    made = entry.patterns(arguments)
    expected = entry.brute_force(arguments, made[0].shape)
    np.testing.assert_array_equal(dense(made), expected)
    pairs = int(expected.sum())
    assert sum(pattern.nnz for pattern in made) == pairs
    assert entry.nnz(**arguments) in (pairs, None)
    return expected


@by_example
def test_examples_are_what_the_definition_says(entry: Entry, arguments: dict[str, Any]) -> None:
    check(entry, arguments)


@by_entry
@given(data=st.data())
def test_random_cases_are_what_the_definition_says(entry: Entry, data: st.DataObject) -> None:
    arguments = entry.sample(lambda low, high: data.draw(st.integers(low, high)))
    expected = check(entry, arguments)
    event("empty" if not expected.size else "all" if expected.all() else "some")


@by_entry
def test_patterns_of_several_tiles_are_what_the_definition_says(entry: Entry) -> None:
    check(entry, entry.scaled(BEYOND_A_TILE))


@by_entry
def test_stored_pattern(entry: Entry) -> None:
    """The meaning of every window is pinned by a stored file (bug 19 of the field: off by one)."""
    stored = scipy.sparse.load_npz(ATLAS / f"{entry.name}.npz")
    assert max(stored.shape) <= 128
    np.testing.assert_array_equal(dense(entry.patterns(entry.examples[0])), stored.toarray())


@by_example
def test_transposed_and_causal(entry: Entry, arguments: dict[str, Any]) -> None:
    for pattern in entry.patterns(arguments):
        mask = pattern.toarray()
        np.testing.assert_array_equal(pattern.T.toarray(), mask.T)
        np.testing.assert_array_equal(
            pattern.causal().toarray(), np.tril(mask, mask.shape[1] - mask.shape[0])
        )
        if mask.size:
            assert pattern.sparsity == pytest.approx(1 - mask.sum() / mask.size, abs=1e-15)
        assert (~pattern).nnz == mask.size - mask.sum()


@by_example
def test_conversions_agree(entry: Entry, arguments: dict[str, Any]) -> None:
    for pattern in entry.patterns(arguments):
        csr, mask = pattern.tocsr(), pattern.toarray()
        assert csr.has_canonical_format
        np.testing.assert_array_equal(csr.toarray(), mask)
        np.testing.assert_array_equal(pattern.tocoo().toarray(), mask)
        assert patterns.as_pattern(pattern.toindices(), keys=mask.shape[1]).equals(pattern)


@by_example
def test_names_are_calls(entry: Entry, arguments: dict[str, Any]) -> None:
    """What `explain` and pictures show can be pasted, unless a long sequence is cut short."""
    assert entry.call(arguments).startswith(f"{entry.name}(")
    pattern, *others = entry.patterns(arguments)
    if "..." in pattern.name or others:
        return
    rebuilt = eval(f"patterns.{pattern.name}", {"patterns": patterns})
    assert rebuilt.name == pattern.name
    assert rebuilt.equals(pattern)


@by_entry
def test_long_patterns_cost_kilobytes_and_milliseconds(entry: Entry) -> None:
    arguments = entry.scaled(LONG)
    fastest = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        made = entry.patterns(arguments)
        fastest = min(fastest, time.perf_counter() - start)
    assert LONG / 2 < made[0].shape[0] < 2 * LONG
    assert len(pickle.dumps(made)) < 6e6  # the mask of one head is 4.3e9
    assert fastest < 0.1  # 6 ms at most where this was written


@by_example
def test_pickling(entry: Entry, arguments: dict[str, Any]) -> None:
    for pattern in entry.patterns(arguments):
        copy = pickle.loads(pickle.dumps(pattern))
        assert copy.name == pattern.name
        assert copy.equals(pattern)


@by_entry
def test_caller_keeps_its_arrays(entry: Entry) -> None:
    """Arrays are neither written to nor followed: a pattern does not change when its caller's array does."""
    arguments = {
        name: np.array(value)
        if isinstance(value, list) and value and not isinstance(value[0], str)
        else value
        for name, value in entry.examples[0].items()
    }
    before = {name: np.copy(value) for name, value in arguments.items()}
    made = entry.patterns(arguments)
    for name, value in arguments.items():
        np.testing.assert_array_equal(value, before[name])
        if isinstance(value, np.ndarray):
            value[:] = 0
    np.testing.assert_array_equal(dense(made), dense(entry.patterns(entry.examples[0])))


@by_entry
def test_numpy_integers_are_integers_and_floats_are_not(entry: Entry) -> None:
    arguments = entry.examples[0]
    for name, value in arguments.items():
        if type(value) is not int:
            continue
        assert entry.patterns({**arguments, name: np.int32(value)})[0].shape
        for wrong in (float(value), np.float64(value), str(value), True, -1, value + 0.5):
            with pytest.raises(PatternError, match=r"given: .*supported: .*what to do: "):
                entry.build(**{**arguments, name: wrong})


@by_entry
def test_huge_numbers_mean_what_they_say(entry: Entry) -> None:
    """Windows, blocks and counts beyond every sequence: the definition still holds, nothing overflows."""
    for arguments in entry.examples[:2]:
        shape = entry.patterns(arguments)[0].shape
        for name, value in arguments.items():
            if type(value) is not int:
                continue
            with pytest.raises(PatternError, match=f"{name}={2**70}; supported: a whole number from"):
                entry.build(**{**arguments, name: 2**70})
            try:
                if entry.patterns({**arguments, name: value + 1})[0].shape == shape:  # else it is a length
                    check(entry, {**arguments, name: 2**40})
            except PatternError as refusal:
                assert "from " in refusal.supported
