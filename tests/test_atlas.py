"""The atlas is what its generator makes: cards, stored patterns and pictures of every pattern."""

from __future__ import annotations

import inspect
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from numba_sparse_attn import patterns
from numba_sparse_attn.patterns.catalogue import CATALOGUE, Entry
from reports import make_atlas

ATLAS = Path(__file__).resolve().parents[1] / "patterns"
#: Public names of the patterns package that are not patterns.
OTHERS = {"HeadPatterns", "Pattern", "as_pattern", "indentation_levels"}
by_entry = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=list(CATALOGUE))


def test_every_exported_pattern_is_in_the_catalogue() -> None:
    assert set(patterns.__all__) - OTHERS == set(CATALOGUE)
    assert all(getattr(patterns, name) is entry.build for name, entry in CATALOGUE.items())


def test_folder_holds_the_atlas_and_nothing_else() -> None:
    expected = {"README.md", "cpython_levels.json", "dynamic"}
    expected |= {f"{name}.{suffix}" for name in CATALOGUE for suffix in ("md", "npz", "png")}
    assert {path.name for path in ATLAS.iterdir()} == expected, "run `make atlas`"


def test_cards_are_current() -> None:
    for name, text in make_atlas.cards().items():
        assert (ATLAS / name).read_text("utf-8") == text, f"{name} is not current: run `make atlas`"


def test_index_starts_by_saying_what_the_folder_is_not() -> None:
    text = (ATLAS / "README.md").read_text("utf-8")
    sentence = text.split("\n\n")[1].split(". ")[0]
    assert sentence == "This folder holds cards and stored patterns, no importable code"


@by_entry
def test_stored_pattern_is_the_definition(entry: Entry) -> None:
    stored = scipy.sparse.load_npz(ATLAS / f"{entry.name}.npz")
    assert stored.format == "csr"
    assert stored.dtype == np.bool_
    assert stored.has_canonical_format
    np.testing.assert_array_equal(stored.toarray(), make_atlas.golden(entry).toarray())


@by_entry
def test_picture(entry: Entry) -> None:
    content = (ATLAS / f"{entry.name}.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width == 300
    assert height in (180, 300)
    assert len(content) <= 15_000


@by_entry
def test_docstring_says_everything(entry: Entry) -> None:
    doc = make_atlas.read_docstring(entry.build)
    assert doc.summary.endswith(".")
    assert "\n" not in doc.summary
    assert "```text\n" in doc.text  # the set, written as a formula
    assert list(doc.notes) == list(make_atlas.NOTES)
    assert doc.notes["Pairs"].startswith(("exactly", "at most", "at least"))
    assert "`O(" in doc.notes["Cost"]
    assert doc.example.count(">>> ") >= 2
    documented = [name.strip() for names, _, _ in doc.parameters for name in names.split(",")]
    assert documented == list(inspect.signature(entry.build).parameters)


@by_entry
def test_optional_arguments_are_keyword_only(entry: Entry) -> None:
    for parameter in inspect.signature(entry.build).parameters.values():
        optional = parameter.default is not inspect.Parameter.empty
        assert optional == (parameter.kind is inspect.Parameter.KEYWORD_ONLY), parameter


@by_entry
def test_one_file_a_pattern(entry: Entry) -> None:
    assert entry.build.__module__ == f"numba_sparse_attn.patterns.{entry.name}"


def test_other_names_lead_to_patterns() -> None:
    assert {name for _, name, _ in make_atlas.OTHER_NAMES} <= set(CATALOGUE)


def test_recorded_levels_are_levels() -> None:
    recorded = make_atlas.recorded_levels()
    assert sorted(recorded) == sorted(make_atlas.MODULES)
    for levels in recorded.values():
        assert len(levels) > 300
        assert levels[0] == 0
        assert max(np.diff(levels)) == 1  # a block is entered level by level, but may be left at once
