"""The pages and docstrings do what they say: README's code runs, and so does every ``>>>``."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import numba_sparse_attn as nsa

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
#: Importing it needs Hypothesis, not more; the tests have that.
MODULES = sorted(
    info.name for info in pkgutil.walk_packages(nsa.__path__, "numba_sparse_attn.") if "cuda" not in info.name
)


@pytest.mark.parametrize("module", ["numba_sparse_attn", *MODULES])
def test_doctests(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    imported = importlib.import_module(module)
    failed, _ = doctest.testmod(imported, extraglobs={"np": np, "nsa": nsa}, optionflags=doctest.ELLIPSIS)
    assert not failed


@pytest.mark.parametrize("module", ["compare", "measure", "progress", "tables"])
def test_doctests_of_the_benchmarks(module: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(f"benchmarks.{module}"))
    assert attempted and not failed


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_readme_examples_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"README.md, example {number + 1}", "exec"), {})


def test_readme_starts_with_a_short_example() -> None:
    assert len(EXAMPLES[0].strip().splitlines()) <= 16


def test_readme_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for page in PAGES:
        for target in re.findall(r"`make ([\w-]+)`", (ROOT / page).read_text("utf-8")):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page} names make {target}"


def test_readme_names_extras_that_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for extra in re.findall(r"\[(\w+)\]\"", README):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_ci_calls_the_readmes_test_command() -> None:
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_the_pages_are_not_longer_than_those_of_the_code(page: str) -> None:
    """Tables and generated blocks excepted."""
    text = re.sub(r"<!-- begin.*?end: \w+ -->", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


def test_versions_agree() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{nsa.__version__}"' in project
    assert f"## {nsa.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
