"""Patterns from data: graphs, stored as CSR, and the indentation of real code."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

import numba_sparse_attn as nsa
from numba_sparse_attn.formats.csr import Csr

__all__ = ["GRAPHS", "arbitrary_csr", "code_indentation", "hashed_tokens", "power_law_graph"]


def _stored(n: int, indptr: npt.NDArray[np.int64], indices: npt.NDArray[np.int32], name: str) -> nsa.Pattern:
    indices.flags.writeable = indptr.flags.writeable = False
    return nsa.Pattern.from_csr(Csr((n, n), indptr, indices), name=name)


def arbitrary_csr(n: int, per_row: int, seed: int) -> nsa.Pattern:
    """A regular graph: `per_row` random keys for each of `n` queries.

    Each row takes one key from each of `per_row` equal strata, which keeps rows sorted and free of
    duplicates without sorting ten million numbers.
    """
    strata = n // per_row
    offsets = np.random.default_rng(seed).integers(0, strata, (n, per_row), dtype=np.int32)
    indices = (offsets + np.arange(per_row, dtype=np.int32) * np.int32(strata)).reshape(-1)
    indptr = np.arange(n + 1, dtype=np.int64) * per_row
    return _stored(n, indptr, indices, f"arbitrary_csr(n={n}, per_row={per_row})")


def power_law_graph(n: int, average: int, exponent: float, seed: int) -> nsa.Pattern:
    """A symmetric graph with hubs, as social and citation networks are: ``n * average`` pairs exactly.

    Vertices get weights ``rank ** (-1 / (exponent - 1))`` in a random order, and edges fall on pairs of
    vertices in proportion to both weights, so that the share of vertices with a degree of d falls as
    ``d ** -exponent``. No loops, no double edges; a few vertices have no edge at all.
    """
    indptr, indices = _power_law_lists(n, average, exponent, seed)
    name = f"power_law_graph(n={n}, average={average}, exponent={exponent})"
    return _stored(n, indptr, indices, name)


@functools.lru_cache(maxsize=1)  # every contender makes his own pattern from it, and it takes seconds
def _power_law_lists(
    n: int, average: int, exponent: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    generator = np.random.default_rng(seed)
    weights = np.arange(1, n + 1, dtype=np.float64) ** (-1.0 / (exponent - 1.0))
    cumulative = np.cumsum(weights[generator.permutation(n)])
    wanted = n * average // 2
    found = np.empty(0, np.int64)
    while len(found) < wanted:
        ends = np.searchsorted(cumulative, generator.random((2, wanted)) * cumulative[-1]).astype(np.int64)
        low, high = ends.min(axis=0), ends.max(axis=0)
        found = np.union1d(found, (low * n + high)[low != high])
    low, high = np.divmod(generator.permutation(found)[:wanted], n)
    rows, keys = np.divmod(np.sort(np.concatenate([low * n + high, high * n + low])), n)
    indptr = np.searchsorted(rows, np.arange(n + 1)).astype(np.int64)
    return indptr, keys.astype(np.int32)


#: Modules that are long and deep, in the order in which they are read.
_MODULES = ("argparse", "ast", "dataclasses", "inspect", "typing")


def code_indentation(n: int, window: int) -> nsa.Pattern:
    """The first `n` lines of modules of Python's own library as tokens that see by their indentation."""
    text = "\n".join(inspect.getsource(importlib.import_module(name)) for name in _MODULES)
    levels = nsa.patterns.indentation_levels(text)
    if len(levels) < n:
        raise ValueError(f"{n} lines asked for, and there are {len(levels)}")
    return nsa.patterns.indentation(levels[:n], window)


def hashed_tokens(n: int, heads: int, chunk: int, buckets: int, seed: int) -> nsa.HeadPatterns:
    """A round of LSH as in Reformer: queries are keys, random ones here, and every head has its buckets."""
    tokens = np.random.default_rng(seed).standard_normal((heads, n, 64), np.float32)
    made = nsa.dynamic.lsh(tokens, tokens, chunk, buckets, seed=seed, causal=True)
    assert isinstance(made, nsa.HeadPatterns)
    return made


#: By the names that a :class:`~benchmarks.kinds.PatternSpec` gives them.
GRAPHS: dict[str, Callable[..., nsa.Pattern | nsa.HeadPatterns]] = {
    "arbitrary_csr": arbitrary_csr,
    "code_indentation": code_indentation,
    "hashed_tokens": hashed_tokens,
    "power_law_graph": power_law_graph,
}
