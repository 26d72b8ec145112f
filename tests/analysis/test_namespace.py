"""``nsa.analysis`` is there without being imported, and documents itself."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import analysis

ROOT = Path(__file__).resolve().parents[2]


def loaded(script):
    """The package's own modules, and matplotlib's, that a fresh process has loaded after a script."""
    report = "print(*(n for n in sys.modules if n.startswith(('numba_sparse_attn.', 'matplotlib'))))"
    command = [sys.executable, "-c", f"import sys, numba_sparse_attn as nsa\n{script}\n{report}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_it_is_imported_when_it_is_used():
    before = loaded("assert {'analysis', 'plot'} <= set(dir(nsa))")
    assert not any(name.startswith(("numba_sparse_attn.analysis", "matplotlib")) for name in before)
    after = loaded("nsa.analysis.recall")
    assert "numba_sparse_attn.analysis.loss" in after
    assert not any("matplotlib" in name or name == "numba_sparse_attn.plot" for name in after)
    assert "numba_sparse_attn.plot" in loaded("nsa.plot")


def test_unknown_names_are_still_unknown():
    with pytest.raises(AttributeError, match="no attribute 'analyses'"):
        nsa.analyses  # noqa: B018


@pytest.mark.parametrize("name", analysis.__all__)
def test_public_names_are_documented(name):
    """Functions with an example; classes are made by functions."""
    thing = getattr(analysis, name)
    text = inspect.getdoc(thing) or ""
    assert text and (inspect.isclass(thing) or ">>> " in text)
    assert analysis.__all__ == sorted(analysis.__all__)
