"""Causal patterns of one budget: every family gets the same number of pairs and spends it its own way.

A budget is a density: that share of the pairs of dense causal attention. What a family tunes is one whole
number, taken as large as the budget allows. Families made of two parts spend half of the budget on what
they are named for, and the rest on a window of the latest keys, as every one of them has in the literature;
where that is done otherwise, the family says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from numba_sparse_attn import Pattern, patterns

__all__ = [
    "DENSE",
    "DENSITIES",
    "FAMILIES",
    "SEEDED",
    "Lines",
    "Text",
    "largest",
    "largest_size",
    "make_pattern",
]

#: Dense causal attention, the yardstick.
DENSE = "dense"
#: Shares of the pairs of dense causal attention.
DENSITIES = (0.25, 0.125, 0.0625)

#: First tokens that stay visible: StreamingLLM's four.
_SINKS = 4
#: How far apart the keys of the dilated part are.
_DILATION = 4
#: Tokens in a block of BigBird: small, so that short texts with small budgets have room for it.
_BLOCK = 16
#: Tokens of a header that an outline shows, and headers on either side of every scope.
_HEADER = 12
_SIBLINGS = 2


@dataclass(frozen=True)
class Lines:
    """The lines of a program.

    Parameters
    ----------
    levels : int array (lines,)
        Of indentation.
    lengths : int array (lines,)
        Tokens of each.
    """

    levels: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @property
    def token_levels(self) -> npt.NDArray[np.int64]:
        """Level of the line of every token."""
        return np.repeat(self.levels, self.lengths)


@dataclass(frozen=True)
class Text:
    """What a family may know of a sequence of tokens.

    Parameters
    ----------
    length : int
        Tokens.
    lines : Lines, optional
        If it is code.
    opening, closing : int
        Tokens of a question before and after a document; 0 if there is none.
    boundaries : int array, optional
        Positions where sentences of the document end.
    """

    length: int
    lines: Lines | None = None
    opening: int = 0
    closing: int = 0
    boundaries: npt.NDArray[np.int64] | None = None


def largest(make: Callable[[int], Pattern], budget: int, high: int) -> Pattern:
    """`make` of the largest number up to `high` with at most `budget` pairs; pairs grow with the number."""
    least = make(0)
    if least.nnz > budget:
        raise _too_small(least, budget)
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if make(middle).nnz <= budget else (low, middle - 1)
    return make(low)


def largest_size(make: Callable[[int], Pattern], budget: int, high: int) -> int:
    """The largest size from `high` to 1 with at most `budget` pairs, where they may fall as it grows."""
    for size in range(high, 0, -1):
        if make(size).nnz <= budget:
            return size
    raise _too_small(make(1), budget)


def _too_small(least: Pattern, budget: int) -> ValueError:
    return ValueError(f"{least.name} has {least.nnz} pairs, the budget is {budget}; take a higher density")


def _window(length: int, reach: int) -> Pattern:
    return patterns.sliding_window(length, reach, causal=True)


def _with_window(part: Pattern, budget: int) -> Pattern:
    """`part`, and the latest keys for what is left of the budget."""
    length = part.shape[0]
    return largest(lambda reach: part | _window(length, reach), budget, length)


def _dense(text: Text, budget: int, seed: int) -> Pattern:
    """Every key up to the query's own."""
    return patterns.causal(text.length)


def _sliding(text: Text, budget: int, seed: int) -> Pattern:
    """The latest keys."""
    return largest(lambda reach: _window(text.length, reach), budget, text.length)


def _sink_window(text: Text, budget: int, seed: int) -> Pattern:
    """The first four tokens and the latest keys."""
    return largest(lambda reach: patterns.sink_window(text.length, _SINKS, reach), budget, text.length)


def _strided(text: Text, budget: int, seed: int) -> Pattern:
    """Keys at equal distances from the query, and the latest ones."""
    # Every stride-th key is 1 / stride of all pairs, and has to be half of the budget.
    stride = -(-text.length * (text.length + 1) // budget)
    return _with_window(patterns.strided(text.length, stride, 0, causal=True), budget)


def _dilated(text: Text, budget: int, seed: int) -> Pattern:
    """Every fourth key of a window, and the latest ones."""

    def gaps(reach: int) -> Pattern:
        return patterns.dilated_window(text.length, reach, _DILATION).causal()

    return _with_window(largest(gaps, budget // 2, text.length), budget)


def _bigbird(text: Text, budget: int, seed: int) -> Pattern:
    """Random blocks of 16 tokens, the first block, and the latest keys."""
    blocks = -(-text.length // _BLOCK)

    def chosen(count: int) -> Pattern:
        return patterns.bigbird(text.length, _BLOCK, 0, 1, count, seed).causal()

    return _with_window(largest(chosen, budget // 2, blocks), budget)


def _longformer(text: Text, budget: int, seed: int) -> Pattern:
    """Global tokens at equal distances, the first token one of them, and the latest keys."""

    def hubs(count: int) -> Pattern:
        tokens = np.arange(count) * text.length // max(count, 1)
        return patterns.global_tokens(text.length, tokens).causal()

    return _with_window(largest(hubs, budget // 2, text.length), budget)


def _random(text: Text, budget: int, seed: int) -> Pattern:
    """Nothing but random keys and the query's own."""
    own = _window(text.length, 0)
    # One key a query has half a chance to be in its past: on average this is just too much, and counting
    # the pairs of a trial takes half a second.
    for count in range(2 * budget // (text.length + 1) + 1, -1, -1):
        pattern = own | patterns.random_keys(text.length, count, seed).causal()
        if pattern.nnz <= budget:
            return pattern
    raise _too_small(own, budget)


def _log_sparse(text: Text, budget: int, seed: int) -> Pattern:
    """Keys at distances that double, and the latest ones."""
    return _with_window(patterns.exponential_offsets(text.length, 1).causal(), budget)


def _block_local(text: Text, budget: int, seed: int) -> Pattern:
    """The keys of the query's own block."""
    return largest(
        lambda block: patterns.block_local(text.length, block + 1).causal(), budget, text.length - 1
    )


def _indentation(text: Text, budget: int, seed: int) -> Pattern:
    """The latest tokens, and the nearest ones of the same level of indentation and of the block around it."""
    return _scoped(text, budget, 0)


def _sink_indentation(text: Text, budget: int, seed: int) -> Pattern:
    """As `indentation`, and the first four tokens."""
    return _scoped(text, budget, _SINKS)


def _scoped(text: Text, budget: int, sinks: int) -> Pattern:
    """The first tokens, a window, and the nearest tokens of the same level and of the block around it.

    The window gets a quarter of the budget: with half, it would reach as far as the tokens of the level,
    which are about half of all that are near.
    """
    near = largest(lambda reach: patterns.sink_window(text.length, sinks, reach), budget // 4, text.length)
    scopes = patterns.indentation(_lines(text).token_levels, 0)
    return largest(lambda reach: near | (scopes & _window(text.length, reach)), budget, text.length)


def _lines(text: Text) -> Lines:
    if text.lines is None:
        raise ValueError("this family needs the lines of a program; it is for code")
    return text.lines


def _outline(text: Text, budget: int, seed: int) -> Pattern:
    """The headers of enclosing scopes and of their neighbors, the first four tokens, the latest ones."""
    return _outlined(text, budget, _HEADER, _SIBLINGS, _SINKS)


def _outline_without_siblings(text: Text, budget: int, seed: int) -> Pattern:
    """As `outline`, without the headers of neighbors."""
    return _outlined(text, budget, _HEADER, 0, _SINKS)


def _outline_without_landmarks(text: Text, budget: int, seed: int) -> Pattern:
    """As `outline`, without the first four tokens."""
    return _outlined(text, budget, _HEADER, _SIBLINGS, 0)


def _outlined(text: Text, budget: int, header: int, siblings: int, sinks: int) -> Pattern:
    """An outline, and the latest tokens for what is left of the budget.

    Without headers it would be `sink_window`, which is the ablation of that part. Without a window there
    would be nothing to spend the budget on.
    """
    lines = _lines(text)
    shown = patterns.outline(lines.levels, lines.lengths, 0, header, siblings, landmarks=np.arange(sinks))
    return _with_window(shown.causal(), budget)


def _document_qa(text: Text, budget: int, seed: int) -> Pattern:
    """The question, sentence ends and the latest keys; what stands behind the document sees all.

    Sentence ends are thinned evenly to as many as fit into half of what the questions leave of the budget.
    """
    ends = np.empty(0, np.int64) if text.boundaries is None else text.boundaries
    behind = patterns.global_tokens(text.length, np.arange(text.length - text.closing, text.length))

    def hubs(count: int) -> Pattern:
        chosen = ends[np.arange(count) * len(ends) // max(count, 1)]
        return (patterns.document_qa(text.length, text.opening, 0, boundaries=chosen) | behind).causal()

    return _with_window(largest(hubs, (hubs(0).nnz + budget) // 2, len(ends)), budget)


_Family = Callable[[Text, int, int], Pattern]

#: By name. Which of them a scenario runs is its own choice.
FAMILIES: dict[str, _Family] = {
    DENSE: _dense,
    "window": _sliding,
    "sink_window": _sink_window,
    "strided": _strided,
    "dilated": _dilated,
    "bigbird": _bigbird,
    "longformer": _longformer,
    "random": _random,
    "log_sparse": _log_sparse,
    "block_local": _block_local,
    "indentation": _indentation,
    "sink_indentation": _sink_indentation,
    "outline": _outline,
    "outline_without_siblings": _outline_without_siblings,
    "outline_without_landmarks": _outline_without_landmarks,
    "document_qa": _document_qa,
}

#: Families that draw lots.
SEEDED = frozenset({"bigbird", "random"})
#: Families that look at the text and not at its length alone.
_TEXTUAL = frozenset(
    {
        "indentation",
        "sink_indentation",
        "outline",
        "outline_without_siblings",
        "outline_without_landmarks",
        "document_qa",
    }
)


def make_pattern(family: str, text: Text, density: float, seed: int) -> Pattern:
    """A family's pattern for a text, with at most `density` times the pairs of dense causal attention.

    >>> sparse = make_pattern("sink_window", Text(1024), 0.125, 0)
    >>> round(sparse.nnz / make_pattern("dense", Text(1024), 1.0, 0).nnz, 3)
    0.125
    """
    if family in _TEXTUAL:
        return FAMILIES[family](text, _budget(text.length, density), seed)
    return _pattern_of_length(family, text.length, density, seed)


def _budget(length: int, density: float) -> int:
    return int(density * (length * (length + 1) // 2))


@cache
def _pattern_of_length(family: str, length: int, density: float, seed: int) -> Pattern:
    """Made once for all documents: counting random keys for every trial of a budget takes seconds."""
    return FAMILIES[family](Text(length), _budget(length, density), seed)
