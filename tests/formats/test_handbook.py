"""The handbook runs: its examples, its links, its stored numbers, and its first sentence."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

from numba_sparse_attn.formats import TILE, WORDS, lane_words
from numba_sparse_attn.formats.pieces import FIELDS
from numba_sparse_attn.testing import assert_golden
from reports import make_handbook

HANDBOOK = Path(__file__).resolve().parents[2] / "formats"
PAGES = sorted(HANDBOOK.glob("*.md"))

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def examples(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
    return "\n".join(blocks)


@every_page
def test_examples_run(page):
    text = examples(page)
    assert ">>> " in text, f"{page.name} shows no example"
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    report: list[str] = []
    failures = runner.run(test, out=report.append).failed
    assert not failures, "".join(report)


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_listed_and_the_folder_says_what_it_is():
    front = (HANDBOOK / "README.md").read_text("utf-8")
    assert "This folder holds specifications and stored arrays, no importable code." in front
    for page in PAGES:
        assert page.name == "README.md" or f"({page.name})" in front


def test_the_fields_of_a_piece_are_on_their_page():
    row = next(
        line
        for line in (HANDBOOK / "pieces.md").read_text("utf-8").splitlines()
        if line.startswith("| field")
    )
    assert tuple(re.findall(r"`(\w+)`", row)) == FIELDS


def test_the_stored_lane_order_is_the_lane_order():
    row, column = make_handbook.lane_order()
    assert_golden(HANDBOOK / "lane_order.npz", row=row, column=column)
    mask = np.random.default_rng(0).random((TILE, TILE)) < 0.5
    pool = np.packbits(mask, axis=1, bitorder="little").view("<u8").astype(np.uint64).reshape(1, TILE, WORDS)
    bits = np.unpackbits(lane_words(pool)[0].astype("<u8").view(np.uint8), bitorder="little").astype(bool)
    np.testing.assert_array_equal(bits.reshape(2, 128, 64), mask[row, column])
