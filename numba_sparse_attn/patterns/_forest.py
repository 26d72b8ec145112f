"""Forests of tokens, and the relations that are read from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..errors import PatternError
from ._spans import spread

__all__ = ["Forest", "depths_of"]


def depths_of(parents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Steps from every token to its root, by doubling the step; refuses cycles."""
    jump = parents.copy()
    depths = (parents >= 0).astype(np.int64)
    for _ in range(len(parents).bit_length()):
        below = np.flatnonzero(jump >= 0)
        depths[below] += depths[jump[below]]
        jump[below] = jump[jump[below]]
    if (jump >= 0).any():
        token = int(np.argmax(jump >= 0))
        raise PatternError(
            f"parents in which token {token} never comes to a root",
            "a tree, or several",
            "mark roots with -1",
        )
    return depths


@dataclass(frozen=True, eq=False)
class Forest:
    """A forest with what its relations are read from, each made once."""

    parents: npt.NDArray[np.int64]
    depths: npt.NDArray[np.int64]

    @cached_property
    def children(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(tokens by parent, first of each parent's children there, their count)."""
        order = np.argsort(self.parents, kind="stable")
        counts = np.bincount(self.parents[self.parents >= 0], minlength=len(self.parents))
        roots = len(self.parents) - int(counts.sum())
        return order, roots + np.cumsum(counts) - counts, counts

    @cached_property
    def intervals(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(place, end) in an order in which every subtree is the range place .. end - 1."""
        downwards = np.argsort(self.depths, kind="stable").tolist()
        parents = self.parents.tolist()
        sizes = [1] * len(parents)
        for token in reversed(downwards):
            if parents[token] >= 0:
                sizes[parents[token]] += sizes[token]
        place, free, next_root = [0] * len(parents), [0] * len(parents), 0
        for token in downwards:
            parent = parents[token]
            if parent >= 0:
                place[token] = free[parent]
                free[parent] += sizes[token]
            else:
                place[token] = next_root
                next_root += sizes[token]
            free[token] = place[token] + 1
        begin = np.array(place, np.int64)
        return begin, begin + np.array(sizes, np.int64)

    def children_of(
        self, tokens: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(number in `tokens`, child) of all their children; -1 has none."""
        order, first, counts = self.children
        owner, number = spread(np.where(tokens >= 0, counts[tokens], 0))
        return owner, order[first[tokens[owner]] + number]
