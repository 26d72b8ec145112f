"""Golden files notice a changed name, type, shape and bit."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn.testing import assert_golden, write_golden


def test_what_was_written_is_found_again(tmp_path):
    path = tmp_path / "some.npz"
    arrays = {"words": np.arange(6, dtype=np.uint64).reshape(2, 3), "empty": np.zeros((0, 4))}
    write_golden(path, **arrays)
    assert_golden(path, **arrays)
    first = path.read_bytes()
    write_golden(path, **arrays)
    assert path.read_bytes() == first, "writing the same arrays again changed the file"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"other": np.arange(3.0)}, r"holds \['a'\], expected \['other'\]"),
        ({"a": np.arange(3)}, "is int64"),
        ({"a": np.arange(3.0)[:, None]}, r"\(3, 1\)"),
        ({"a": np.array([0.0, 1.0, 3.0])}, r"1 of 3 elements, first at \(2,\)"),
        ({"a": np.array([-0.0, 1.0, 2.0])}, r"1 of 3 elements, first at \(0,\)"),
    ],
)
def test_what_differs_is_named(tmp_path, arrays, words):
    path = tmp_path / "some.npz"
    write_golden(path, a=np.arange(3.0))
    with pytest.raises(AssertionError, match=words):
        assert_golden(path, **arrays)
