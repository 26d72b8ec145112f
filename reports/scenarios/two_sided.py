"""Patterns of one budget for texts that are read at once: queries see what comes after them, too.

The families are those of `families` without an order of time, and a budget is a share of all pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from numba_sparse_attn import Pattern, patterns

from .families import DENSE, largest, largest_size

__all__ = ["TWO_SIDED_FAMILIES", "make_two_sided"]

#: First tokens that stay visible, as many as in `families`.
_SINKS = 4
#: How far apart the keys of the dilated part are.
_DILATION = 4
#: Tokens in a block of BigBird: so few that the first block leaves room for others at 256 tokens.
_BLOCK = 4


def _with_window(part: Pattern, budget: int) -> Pattern:
    """`part`, and the nearest keys for what is left of the budget."""
    length = part.shape[0]
    return largest(lambda reach: part | patterns.sliding_window(length, reach), budget, length)


def _dense(length: int, budget: int, seed: int) -> Pattern:
    """Every key."""
    return patterns.full(length)


def _window(length: int, budget: int, seed: int) -> Pattern:
    """The nearest keys."""
    return largest(lambda reach: patterns.sliding_window(length, reach), budget, length)


def _sink_window(length: int, budget: int, seed: int) -> Pattern:
    """The first four tokens and the nearest keys; the first four see every key."""
    return _with_window(patterns.global_tokens(length, np.arange(_SINKS)), budget)


def _strided(length: int, budget: int, seed: int) -> Pattern:
    """Keys at equal distances from the query, and the nearest ones."""
    # Every stride-th key is 1 / stride of all pairs, and has to be half of the budget.
    return _with_window(patterns.strided(length, -(-2 * length * length // budget), 0), budget)


def _dilated(length: int, budget: int, seed: int) -> Pattern:
    """Every fourth key of a window, and the nearest ones."""

    def gaps(reach: int) -> Pattern:
        return patterns.dilated_window(length, reach, _DILATION)

    return _with_window(largest(gaps, budget // 2, length), budget)


def _bigbird(length: int, budget: int, seed: int) -> Pattern:
    """Random blocks of four tokens, the first block, and the nearest keys; the first block sees every key."""

    def chosen(count: int) -> Pattern:
        return patterns.bigbird(length, _BLOCK, 0, 1, count, seed)

    return _with_window(largest(chosen, budget // 2, -(-length // _BLOCK)), budget)


def _longformer(length: int, budget: int, seed: int) -> Pattern:
    """Global tokens at equal distances, the first token one of them, and the nearest keys."""

    def hubs(count: int) -> Pattern:
        return patterns.global_tokens(length, np.arange(count) * length // max(count, 1))

    return _with_window(largest(hubs, budget // 2, length), budget)


def _random(length: int, budget: int, seed: int) -> Pattern:
    """Nothing but random keys and the query's own."""
    own = patterns.sliding_window(length, 0)
    return largest(lambda count: own | patterns.random_keys(length, count, seed), budget, length)


def _block_local(length: int, budget: int, seed: int) -> Pattern:
    """The keys of the query's own block."""
    block = largest_size(lambda size: patterns.block_local(length, size), budget, length)
    return patterns.block_local(length, block)


#: By name.
TWO_SIDED_FAMILIES: dict[str, Callable[[int, int, int], Pattern]] = {
    DENSE: _dense,
    "window": _window,
    "sink_window": _sink_window,
    "strided": _strided,
    "dilated": _dilated,
    "bigbird": _bigbird,
    "longformer": _longformer,
    "random": _random,
    "block_local": _block_local,
}


@cache
def make_two_sided(family: str, length: int, density: float, seed: int) -> Pattern:
    """A family's pattern with at most `density` times the pairs of dense attention.

    >>> make_two_sided("window", 512, 0.125, 0).nnz / 512**2 <= 0.125
    True
    """
    return TWO_SIDED_FAMILIES[family](length, int(density * length * length), seed)
