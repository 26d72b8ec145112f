"""Indentation levels of real and of broken source, and the pattern made from them."""

from __future__ import annotations

import io
import sysconfig
import tokenize
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_sparse_attn import patterns

STDLIB = Path(sysconfig.get_paths()["stdlib"])
FILES = [
    "argparse.py",
    "ast.py",
    "heapq.py",
    "inspect.py",
    "json/decoder.py",
    "textwrap.py",
    "tokenize.py",
    "this.py",
]


def levels_by_tokenizer(source: str) -> list[int]:
    """What Python itself thinks: the depth of INDENT tokens at every statement."""
    lines = source.removesuffix("\n").split("\n")
    levels: list[int | None] = [None] * len(lines)
    depth, start = 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.INDENT:
            depth += 1
        elif token.type == tokenize.DEDENT:
            depth -= 1
        elif token.type in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            continue
        elif token.type == tokenize.NEWLINE:
            levels[start - 1 : token.start[0]] = [depth] * (token.start[0] - start + 1)
            start = 0
        elif not start:
            start = token.start[0]
    following = next((level for level in reversed(levels) if level is not None), 0)
    for number in range(len(lines) - 1, -1, -1):
        level = levels[number]
        following = following if level is None else level
        levels[number] = following
    return [level or 0 for level in levels]


@pytest.mark.parametrize("name", FILES)
def test_real_source(name: str) -> None:
    source = (STDLIB / name).read_text("utf-8")
    levels = patterns.indentation_levels(source)
    assert levels.tolist() == levels_by_tokenizer(source)


@pytest.mark.parametrize("name", ["argparse.py", "inspect.py"])
def test_sparsity_of_real_source(name: str) -> None:
    """Lines of one level see each other anywhere, which is never less than the mean of squares."""
    levels = patterns.indentation_levels((STDLIB / name).read_text("utf-8"))
    pattern = patterns.indentation(levels, 8)
    counts = np.bincount(levels)
    assert pattern.nnz >= (counts**2).sum()
    assert 0.5 < pattern.sparsity < 0.9


SOURCES = {
    "nothing": ("", []),
    "one blank line": ("\n", [0]),
    "no newline at the end": ("if a:\n  b", [0, 1]),
    "blank lines belong to what follows": (
        "def f():\n    a\n\n\ndef g():\n\n    b\n\n",
        [0, 1, 0, 0, 0, 1, 1, 1],
    ),
    "comments belong to what follows": ("def f():\n# out\n    a\n        # in\nb\n", [0, 1, 1, 0, 0]),
    "brackets": ("x = [\n        1,\n  ]\ny\n", [0, 0, 0, 0]),
    "brackets in a block": ("if a:\n    f(b,\nc)\n    d\n", [0, 1, 1, 1]),
    "brackets in strings and comments": ("if a:  # (\n    b = '('\n    c\nd\n", [0, 1, 1, 0]),
    "strings of several lines": ('def f():\n    """One\ntwo (\n\n    """\n    a\n', [0, 1, 1, 1, 1, 1]),
    "an escaped quote": ("if a:\n    '''\\'''\n(\n    '''\n    b\n", [0, 1, 1, 1, 1]),
    "a string continued with a backslash": ("if a:\n    b = 'c\\\nd'\n    e\n", [0, 1, 1, 1]),
    "a statement continued with a backslash": ("if a and \\\n        b:\n    c\n", [0, 0, 1]),
    "tabs reach to the next multiple of eight": ("if a:\n\tb\n        c\n    \td\n", [0, 1, 1, 1]),
    "a form feed starts anew": ("if a:\n    b\n   \f    c\n\fd\n", [0, 1, 1, 0]),
    "other line ends": ("if a:\r\n  b\rc\n", [0, 1, 0]),
    "separators inside a line are no line ends": ("if a:\n  b = '\u2028\x0c'\nc\n", [0, 1, 0]),
    "an indented beginning": ("    a\n  b\nc\n", [1, 1, 0]),
    "a dedent to nowhere": ("if a:\n        b\n    c\nd\n", [0, 1, 1, 0]),
    "an open string": ("if a:\n    b = 'c\n    d\ne\n", [0, 1, 1, 0]),
    "an open bracket": ("if a:\n    f(b\n    c\nd\n", [0, 1, 1, 1]),
    "a bracket too many": ("if a:\n    b))\n    (c\n)\nd\n", [0, 1, 1, 1, 0]),
}


@pytest.mark.parametrize(("source", "levels"), SOURCES.values(), ids=list(SOURCES))
def test_rules(source: str, levels: list[int]) -> None:
    assert patterns.indentation_levels(source).tolist() == levels


@given(st.text(alphabet="ab:#()[]'\"\\ \t\n\r\f", max_size=80))
def test_any_text_has_a_level_a_line(source: str) -> None:
    levels = patterns.indentation_levels(source)
    lines = len(source.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    assert len(levels) in (lines, lines - 1)
    assert (levels >= 0).all()


def test_parents_block_is_one_s_own() -> None:
    """A statement sees the statements around its own `if`, not those of another function."""
    source = "def f():\n  a\n  if b:\n    c\ndef g():\n  d\n"
    seen = patterns.indentation(patterns.indentation_levels(source), 0).toarray()[3]
    assert seen.tolist() == [False, True, True, True, False, False]


def test_tokens_take_the_level_of_their_line() -> None:
    levels = patterns.indentation_levels("if a:\n  b\nc\n")
    tokens = np.repeat(levels, [3, 1, 2])
    pattern = patterns.indentation(tokens, 0)
    assert pattern.shape == (6, 6)
    assert pattern.nnz == 5 * 5 + 1 * 1 + 1 * 5  # level 0, level 1, and level 1 to the block around it
