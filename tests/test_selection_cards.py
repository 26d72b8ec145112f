"""The atlas of selections is what its generator makes, its examples are what the functions give."""

from __future__ import annotations

import inspect
import struct

import numpy as np
import pytest
import scipy.sparse

from numba_sparse_attn.dynamic.catalogue import SELECTIONS, Entry
from reports import make_selections

FOLDER = make_selections.FOLDER
by_entry = pytest.mark.parametrize("entry", SELECTIONS.values(), ids=list(SELECTIONS))


def test_folder_holds_the_cards_and_nothing_else() -> None:
    expected = {"README.md"}
    expected |= {f"{name}.{suffix}" for name in SELECTIONS for suffix in ("md", "npz", "png")}
    assert {path.name for path in FOLDER.iterdir()} == expected, "run `make atlas`"


def test_cards_are_current() -> None:
    for name, text in make_selections.cards().items():
        assert (FOLDER / name).read_text("utf-8") == text, f"{name} is not current: run `make atlas`"


def test_index_starts_by_saying_what_the_folder_is_not() -> None:
    sentence = (FOLDER / "README.md").read_text("utf-8").split("\n\n")[1].split(". ")[0]
    assert sentence == "This folder holds cards and stored examples, no importable code"


@by_entry
def test_stored_example(entry: Entry) -> None:
    """The choice of a seed is pinned by a stored file, written from the definition."""
    stored = scipy.sparse.load_npz(FOLDER / f"{entry.name}.npz")
    assert stored.format == "csr" and stored.dtype == np.bool_ and stored.has_canonical_format
    np.testing.assert_array_equal(stored.toarray(), make_selections.golden(entry).toarray())
    made = np.concatenate([pattern.toarray() for pattern in entry.patterns(entry.examples()[0])])
    np.testing.assert_array_equal(stored.toarray(), made)


@by_entry
def test_picture(entry: Entry) -> None:
    content = (FOLDER / f"{entry.name}.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (300, 180)
    assert len(content) <= 15_000


@by_entry
def test_docstring_says_everything(entry: Entry) -> None:
    doc = make_selections.docstring(entry)
    assert doc.summary.endswith(".") and "\n" not in doc.summary
    assert "```text\n" in doc.text  # the set, written as a formula
    assert list(doc.notes) == list(make_selections.NOTES)
    assert doc.notes["Pairs"].startswith(("exactly", "at most", "at least"))
    assert "`O(" in doc.notes["Cost"]
    assert doc.example.count(">>> ") >= 2
    documented = [name.strip() for names, _, _ in doc.parameters for name in names.split(",")]
    assert documented == list(inspect.signature(entry.select).parameters)


def test_other_names_lead_to_selections() -> None:
    assert {name for _, name, _ in make_selections.OTHER_NAMES} <= set(SELECTIONS)
