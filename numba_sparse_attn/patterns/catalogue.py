"""The catalogue: every named pattern with what its tests, its card and its benchmarks need.

A pattern registers itself with :func:`entry`, right where it is defined. Tests, cards, stored files
and pictures are driven by :data:`CATALOGUE`, so a new pattern is one file and one export line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ._arguments import title
from .heads import HeadPatterns
from .pattern import Pattern

__all__ = ["CATALOGUE", "Entry", "Integers", "entry"]

#: integers(low, high): some whole number in the closed interval [low, high].
Integers = Callable[[int, int], int]

_Build = TypeVar("_Build", bound=Callable[..., Pattern | HeadPatterns])


@dataclass(frozen=True)
class Entry:
    """One named pattern.

    Attributes
    ----------
    name : str
        Of the function, its file, its card, its stored file and its picture.
    build : callable
        The public function.
    examples : tuple of dict
        Arguments of small cases; the first is the one on the card and in the stored file.
    member : callable
        ``member(i, j, **arguments) -> bool``: the definition once more, in plain Python, pair by
        pair; for patterns with several heads ``member(head, i, j, **arguments)``.
    sample : callable
        ``sample(integers) -> arguments``: a small random case drawn with ``integers(low, high)``.
    nnz : callable
        ``nnz(**arguments)``: the number of pairs by formula, or None where there is no formula.
    scaled : callable
        ``scaled(length) -> arguments``: the usual setting for a sequence of about that length.
    heads : int
        How many heads `build` gives; 0 for one pattern for all of them.
    """

    name: str
    build: Callable[..., Pattern | HeadPatterns]
    examples: tuple[dict[str, Any], ...]
    member: Callable[..., bool]
    sample: Callable[[Integers], dict[str, Any]]
    nnz: Callable[..., int | None]
    scaled: Callable[[int], dict[str, Any]]
    heads: int = 0

    def brute_force(self, arguments: Mapping[str, Any], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """The mask by definition; several heads lie below one another, ``(heads * n_q, n_k)``."""
        queries, keys = range(shape[0]), range(shape[1])
        if self.heads:
            flat = [
                self.member(head, i, j, **arguments)
                for head in range(self.heads)
                for i in queries
                for j in keys
            ]
        else:
            flat = [self.member(i, j, **arguments) for i in queries for j in keys]
        return np.array(flat, np.bool_).reshape(max(self.heads, 1) * shape[0], shape[1])

    def call(self, arguments: Mapping[str, Any]) -> str:
        """The call with these arguments, as text; long sequences are cut short."""
        return title(self.build, **arguments)

    def patterns(self, arguments: Mapping[str, Any]) -> list[Pattern]:
        """What `build` gives, as one pattern a head."""
        built = self.build(**arguments)
        return [built] if isinstance(built, Pattern) else list(built)


#: name -> Entry, in the order in which the package imports the patterns.
CATALOGUE: dict[str, Entry] = {}


def _no_formula(**_: Any) -> int | None:
    return None


def entry(
    *,
    examples: Sequence[dict[str, Any]],
    member: Callable[..., bool],
    sample: Callable[[Integers], dict[str, Any]],
    scaled: Callable[[int], dict[str, Any]],
    nnz: Callable[..., int | None] = _no_formula,
    heads: int = 0,
) -> Callable[[_Build], _Build]:
    """Register the decorated function as a named pattern; see :class:`Entry` for the parameters.

    Examples
    --------
    >>> from numba_sparse_attn.patterns.catalogue import CATALOGUE
    >>> window = CATALOGUE["sliding_window"]
    >>> window.member(5, 3, n=8, window=2), window.member(5, 3, n=8, window=1)
    (True, False)
    """

    def register(build: _Build) -> _Build:
        name = build.__name__
        if name in CATALOGUE:
            raise AssertionError(f"two patterns are called {name}")
        CATALOGUE[name] = Entry(name, build, tuple(examples), member, sample, nnz, scaled, heads)
        return build

    return register
