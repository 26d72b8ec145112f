"""A question in front of a document."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..formats.pieces import make_pieces
from ._arguments import check_int, check_ints, title
from ._spans import runs
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["document_qa"]


def _member(i: int, j: int, n: int, question: int, window: int, boundaries: list[int] | None = None) -> bool:
    return min(i, j) < question or abs(j - i) <= window or j in (boundaries or ())


def _nnz(n: int, question: int, window: int, boundaries: list[int] | None = None) -> int:
    length = n - question
    seen = [min(length - 1, i + window) - max(0, i - window) + 1 for i in range(length)]
    inside = {boundary - question for boundary in boundaries or () if boundary >= question}
    return n * n - length * length + sum(seen) + sum(length - seen[boundary] for boundary in inside)


def _sample(integers: Integers) -> dict[str, object]:
    n = integers(1, 20)
    ends = [integers(0, n - 1) for _ in range(integers(0, 4))]
    return {
        "n": n,
        "question": integers(0, n),
        "window": integers(0, 5),
        "boundaries": ends if integers(0, 3) else None,
    }


@entry(
    examples=[
        {"n": 60, "question": 6, "window": 4, "boundaries": [15, 24, 38, 47, 59]},
        {"n": 20, "question": 3, "window": 2},
        {"n": 6, "question": 6, "window": 0},
        {"n": 6, "question": 0, "window": 0, "boundaries": []},
        {"n": 0, "question": 0, "window": 0},
    ],
    member=_member,
    sample=_sample,
    nnz=_nnz,
    scaled=lambda length: {"n": length, "question": 64, "window": 256},
)
def document_qa(n: int, question: int, window: int, *, boundaries: npt.ArrayLike | None = None) -> Pattern:
    """A question sees all; the document sees the question, a window and the sentence boundaries.

    ::

        {(i, j) : i < question  or  j < question
                  or  i - window <= j <= i + window  or  j in boundaries}

    Parameters
    ----------
    n : int
        Number of tokens: the question, then the document.
    question : int
        Tokens of the question, from 0 to n.
    window : int
        Keys that the document sees on each side besides the query's own.
    boundaries : int array, optional
        Positions from 0 to n - 1 that every query sees: sentence ends, separators, headings.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly ``n**2 - m**2`` for the question, with ``m = n - question``, plus those of
    ``sliding_window(m, window)``, plus ``m - w(b)`` for each boundary b in the document, which sees
    w(b) keys of the document in its window.

    Cost: O(n * (question + window + boundaries) * d) time; the pattern is three pieces and one a run of
    neighboring boundaries.

    Reach: everything after two layers, by way of the question.

    Use: to read a long document with a question in mind.

    Avoid: if the document is to be encoded once for many questions; it depends on the question here.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> pattern = patterns.document_qa(4096, 64, 256)
    >>> pattern.nnz, round(pattern.sparsity, 3)
    (2522816, 0.85)
    """
    n = check_int("n", n)
    question = check_int("question", question, high=n)
    window = check_int("window", window)
    ends = check_ints("boundaries", [] if boundaries is None else boundaries, high=n - 1)
    document, everything = (question, n), (0, n)
    pieces = [
        make_pieces(rows=(0, question), columns=everything),
        make_pieces(rows=document, columns=(0, question)),
        make_pieces(rows=document, columns=everything, differences=(-window, window)),
        make_pieces(rows=document, columns=runs(ends)),
    ]
    name = title(document_qa, n=n, question=question, window=window, boundaries=boundaries)
    return Pattern.from_pieces((n, n), np.concatenate(pieces), name=name)
