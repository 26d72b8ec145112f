"""Relatives in a tree."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arguments import check_choice, check_int, check_ints, title
from ._forest import Forest, depths_of
from ._spans import pairs_to_rows, spread
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["RELATIONS", "tree"]

#: What a token may see of its tree.
RELATIONS = ("self", "ancestors", "parent", "children", "siblings")


def _member(
    i: int, j: int, parents: Sequence[int], relations: str | Sequence[str], window: int | None = None
) -> bool:
    line = [parents[i]]
    while line[-1] >= 0:
        line.append(parents[line[-1]])
    related = {
        "self": i == j,
        "ancestors": j in line,
        "parent": j == line[0],
        "children": parents[j] == i,
        "siblings": i != j and parents[i] == parents[j] != -1,
    }
    wanted = [relations] if isinstance(relations, str) else relations
    return any(related[relation] for relation in wanted) or (window is not None and abs(i - j) <= window)


def _nnz(parents: Sequence[int], relations: str | Sequence[str], window: int | None = None) -> int | None:
    wanted = {relations} if isinstance(relations, str) else set(relations)
    if window is not None:
        return None
    edges = sum(parent >= 0 for parent in parents)
    depths = 0
    for parent in parents:
        while parent >= 0:
            depths, parent = depths + 1, parents[parent]
    brothers = [sum(other == parent for other in parents) - 1 for parent in parents if parent >= 0]
    return (
        len(parents) * ("self" in wanted)
        + (depths if "ancestors" in wanted else edges * ("parent" in wanted))
        + edges * ("children" in wanted)
        + sum(brothers) * ("siblings" in wanted)
    )


def _sample(integers: Integers) -> dict[str, Any]:
    n = integers(0, 14)
    names = list(range(n))  # a random forest whose tokens lie in a random order
    for last in range(n - 1, 0, -1):
        other = integers(0, last)
        names[last], names[other] = names[other], names[last]
    parents = [-1] * n
    for place in range(n):
        older = integers(-1, place - 1)
        parents[names[place]] = names[older] if older >= 0 else -1
    return {
        "parents": parents,
        "relations": [relation for relation in RELATIONS if integers(0, 1)],
        "window": integers(0, 3) if integers(0, 2) == 0 else None,
    }


def _outline(n: int) -> list[int]:
    """Parents of an outline in reading order with about four items under each heading."""
    depths = 0
    while 4**depths < n:
        depths += 1
    parents, path = [-1], [0]
    for item in range(1, n):
        trailing_zeros = next(power for power in range(depths + 1) if item % 4 ** (power + 1))
        path = path[: depths - trailing_zeros]
        parents.append(path[-1])
        path.append(item)
    return parents


@entry(
    examples=[
        {"parents": _outline(40), "relations": ["self", "ancestors", "siblings"]},
        {"parents": [3, 0, 0, -1, 3, -1, 5], "relations": ["self", "parent", "children"], "window": 1},
        {"parents": [-1, 0, 1, 2, 3], "relations": "ancestors"},
        {"parents": [1, -1], "relations": []},
        {"parents": [], "relations": ["self"]},
    ],
    member=_member,
    sample=_sample,
    nnz=_nnz,
    scaled=lambda length: {
        "parents": _outline(length),
        "relations": ["self", "ancestors", "children", "siblings"],
    },
)
def tree(parents: npt.ArrayLike, relations: str | Sequence[str], *, window: int | None = None) -> Pattern:
    """Every token sees relatives in a tree of tokens, and a window on request.

    ::

        {(i, j) : j is i}                                                "self"
        {(i, j) : j is parents[i], or its parent, and so on}             "ancestors"
        {(i, j) : j is parents[i]}                                       "parent"
        {(i, j) : parents[j] is i}                                       "children"
        {(i, j) : parents[j] is parents[i], not a root's -1, j is not i} "siblings"
        {(i, j) : i - window <= j <= i + window}                         window

    The pattern is the union of the sets that are asked for.

    Parameters
    ----------
    parents : int array (n,)
        Parent of every token, -1 for a root; tokens may lie in any order, and there may be any number of
        roots.
    relations : str or sequence of str
        Any of "self", "ancestors", "parent", "children", "siblings".
    window : int, optional
        Keys seen on each side, whatever their relation; with 0 the query's own alone.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``. Rows are made when they are needed.

    Notes
    -----
    Pairs: exactly, without a window, n for "self", the sum of all depths for "ancestors" (which contains
    "parent"), n less the roots for "parent" and again for "children", and the sum over all families of
    ``children * (children - 1)`` for "siblings".

    Cost: O(pairs * d) time; the pattern is a few arrays of n numbers, its rows 4 bytes a pair.

    Reach: one step in the tree with every layer, the whole path to the root with "ancestors".

    Use: "self" and "ancestors" to verify many continuations of a text at once (a token tree); with
    "children" and "siblings" for syntax trees, outlines and markup.

    Avoid: for chains, where "ancestors" is :func:`causal` and takes memory for each pair.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.tree([-1, 0, 0, 1], ["self", "ancestors"]).toarray().astype(int)
    array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [1, 0, 1, 0],
           [1, 1, 0, 1]])
    """
    above = check_ints("parents", parents, low=-1)
    above = check_ints("parents", above, low=-1, high=len(above) - 1)
    wanted = [relations] if isinstance(relations, str) else list(relations)
    for relation in wanted:
        check_choice("relations", relation, RELATIONS)
    if window is not None:
        window = check_int("window", window)
    n = len(above)
    rows = partial(_rows, Forest(above, depths_of(above)), frozenset(wanted), window)
    name = title(tree, parents=above, relations=wanted, window=window)
    return Pattern.from_rows((n, n), rows, name=name)


def _rows(
    forest: Forest, relations: frozenset[str], window: int | None, begin: int, end: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    tokens = np.arange(begin, end, dtype=np.int64)
    parents = forest.parents[begin:end]
    empty = np.zeros(0, np.int64)
    queries, keys = [empty], [empty]

    def add(
        query: npt.NDArray[np.int64], key: npt.NDArray[np.int64], keep: npt.NDArray[np.bool_] | slice
    ) -> None:
        queries.append(query[keep])
        keys.append(key[keep])

    if "self" in relations:
        add(tokens, tokens, slice(None))
    if "parent" in relations:
        add(tokens, parents, parents >= 0)
    if "children" in relations:
        owner, child = forest.children_of(tokens)
        add(tokens[owner], child, slice(None))
    if "siblings" in relations:
        owner, child = forest.children_of(parents)
        add(tokens[owner], child, child != tokens[owner])
    if "ancestors" in relations:
        place, stop = forest.intervals
        inside = np.argsort(place[begin:end])
        places = place[begin:end][inside]
        first = np.searchsorted(places, place, side="right")  # a token is not its own ancestor
        ancestor, number = spread(np.searchsorted(places, stop) - first)
        add(tokens[inside[first[ancestor] + number]], ancestor, slice(None))
    if window is not None:
        owner, number = spread(np.full(len(tokens), min(2 * window, 2 * len(forest.parents)) + 1))
        key = tokens[owner] - min(window, len(forest.parents)) + number
        add(tokens[owner], key, (key >= 0) & (key < len(forest.parents)))
    return pairs_to_rows(begin, end, len(forest.parents), np.concatenate(queries), np.concatenate(keys))
