"""Every selection by content with what its tests, its card and its benchmarks need.

A selection registers itself with :func:`entry`, right where it is defined, as the patterns of
:mod:`numba_sparse_attn.patterns.catalogue` do. It differs from those in that it needs arrays: a
:class:`Case` says how large they are and makes them from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from ._call import named
from ._seeded import normals

__all__ = ["SELECTIONS", "Case", "Entry", "by_head", "entry"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_Build = TypeVar("_Build", bound=Callable[..., Any])

#: Tokens between changes of topic in example arrays, and how many topics there are.
_SEGMENT, _TOPICS = 6, 4


@dataclass(frozen=True)
class Case:
    """Sizes of a call, its arguments besides q and k, and the seed of its arrays."""

    n_q: int
    n_k: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 16
    seed: int = 0

    def arrays(self) -> tuple[Array, Array]:
        """q and k: noise around a topic that changes along the sequence: there is something to find."""
        length = max(self.n_q, self.n_k)
        topics = 2.0 * normals(self.seed, (_TOPICS, self.head_dim))
        drawn = normals(self.seed + 1, (-(-length // _SEGMENT),))
        # Quartiles of the normal distribution: every topic is as likely as the others.
        of_token = np.repeat(np.searchsorted([-0.6745, 0.0, 0.6745], drawn), _SEGMENT)[:length]
        base = topics[of_token]
        q = normals(self.seed + 2, (self.heads, self.n_q, self.head_dim)) + base[length - self.n_q :]
        k = normals(self.seed + 3, (self.kv_heads, self.n_k, self.head_dim)) + base[length - self.n_k :]
        return q, k


@dataclass(frozen=True)
class Entry:
    """One selection by content.

    Attributes
    ----------
    name : str
        Of the function, its file, its card, its stored file and its picture.
    select : callable
        The public function: ``select(q, k, **arguments)`` gives Pattern or HeadPatterns.
    examples : callable
        Gives the cases of its tests; the first is the one on the card and in the stored file.
    dense : callable
        ``dense(q, k, **arguments) -> bool [heads, n_q, n_k]`` for q ``[heads, n_q, d]`` and k
        ``[kv_heads, n_k, d]``: the definition once more, written with n x n arrays of NumPy.
    scaled : callable
        ``scaled(length) -> Case``: the usual setting for a sequence of that length.
    """

    name: str
    select: Callable[..., Pattern | HeadPatterns]
    examples: Callable[[], Sequence[Case]]
    dense: Callable[..., Mask]
    scaled: Callable[[int], Case]

    def patterns(self, case: Case) -> list[Pattern]:
        """What the function selects in a case, head by head."""
        made = self.select(*case.arrays(), **case.arguments)
        return [made] if isinstance(made, Pattern) else list(made)

    def brute_force(self, case: Case) -> Mask:
        """The masks of all heads by definition, ``[heads, n_q, n_k]``."""
        return self.dense(*case.arrays(), **case.arguments)

    def call(self, case: Case) -> str:
        """The call as text; arrays are named by their shape."""
        return named(self.select, **case.arguments).replace("(", "(q, k, ", 1)


#: name -> Entry, in the order in which the package imports them.
SELECTIONS: dict[str, Entry] = {}


def entry(
    *,
    examples: Callable[[], Sequence[Case]],
    dense: Callable[..., Mask],
    scaled: Callable[[int], Case],
) -> Callable[[_Build], _Build]:
    """Register the decorated function; see :class:`Entry` for the parameters.

    Examples
    --------
    >>> from numba_sparse_attn.dynamic.catalogue import SELECTIONS
    >>> case = SELECTIONS["top_k"].examples()[0]
    >>> SELECTIONS["top_k"].brute_force(case).sum(axis=2).max() == case.arguments["budget"]
    np.True_
    """

    def register(select: _Build) -> _Build:
        name = select.__name__
        if name in SELECTIONS:
            raise AssertionError(f"two selections are called {name}")
        SELECTIONS[name] = Entry(name, select, examples, dense, scaled)
        return select

    return register


def by_head(dense: Callable[..., Mask], *of_head: str) -> Callable[..., Mask]:
    """A definition for one head, ``dense(q [n_q, d], k [n_k, d], **arguments)``, as one for all heads.

    Arguments named in `of_head` may have a value for every head; one with two axes or more always has.
    """

    def one(name: str, value: Any, head: int) -> Any:
        per_head = name in of_head and (isinstance(value, list) or np.ndim(value) > 1)
        return value[head] if per_head else value

    def all_heads(q: Array, k: Array, **arguments: Any) -> Mask:
        masks = []
        for head in range(len(q)):
            mine = {name: one(name, value, head) for name, value in arguments.items()}
            masks.append(dense(q[head], k[head * len(k) // len(q)], **mine))
        return np.stack(masks)

    return all_heads
