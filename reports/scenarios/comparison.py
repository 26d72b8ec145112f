"""Families beside one another on the same documents: intervals, and paired tests with Holm's adjustment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from .families import DENSE
from .runs import Row

__all__ = [
    "RESAMPLES",
    "Comparison",
    "all_pairs",
    "bootstrap_interval",
    "causal_pairs",
    "compare",
    "complete_rows",
    "holm",
    "paired_p",
    "per_document",
    "whole_seeds",
]

Floats = npt.NDArray[np.float64]
#: Tokens, density, family.
_Cell = tuple[int, float, str]
_Text = tuple[Any, ...]

#: Draws of documents for an interval; also of signs for a test, where documents are too many for all signs.
RESAMPLES = 10_000
_SEED = 0


@dataclass(frozen=True)
class Comparison:
    """One family at one density on the documents that all families of that density were run on.

    `mean` and `to_dense` (the mean of the differences from dense attention) come with the ends of their
    95 % intervals. The p-values are adjusted for all tests of one call of `compare`; those of dense
    attention with itself and of the best family with itself are None.
    """

    tokens: int
    density: float
    family: str
    documents: int
    share: float
    mean: tuple[float, float, float]
    to_dense: tuple[float, float, float]
    best: bool
    p_dense: float | None
    p_best: float | None


def bootstrap_interval(values: npt.ArrayLike) -> tuple[float, float, float]:
    """Mean of one value a document, and the 2.5 and 97.5 percentiles of means of documents drawn anew."""
    one_each = np.asarray(values, np.float64)
    drawn = np.random.default_rng(_SEED).integers(len(one_each), size=(RESAMPLES, len(one_each)))
    low, high = np.percentile(one_each[drawn].mean(axis=1), [2.5, 97.5])
    return float(one_each.mean()), float(low), float(high)


def paired_p(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Two-sided permutation test of equal means, documents paired: every difference may have either sign.

    Exact for up to 13 documents, whose signs have fewer than `RESAMPLES` patterns.
    """

    def difference(a: Floats, b: Floats, axis: int) -> Floats:
        return np.asarray(np.mean(a - b, axis=axis))

    found = stats.permutation_test(
        (np.asarray(first, np.float64), np.asarray(second, np.float64)),
        difference,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        vectorized=True,
        rng=np.random.default_rng(_SEED),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment: valid for all of the tests together, whatever their dependence.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    scaled = np.asarray(p_values, np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def complete_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows that can be compared, of a run that may have been interrupted or is being extended.

    Of every length and density: the texts that most families were run on, and the families that were run on
    all of those. Dense attention has a density of its own, and may have been run on more.
    """
    found = list(rows)
    texts: dict[_Cell, set[_Text]] = {}
    for row in found:
        texts.setdefault(_cell(row), set()).add(_text(row))
    votes: dict[tuple[int, float], Counter[frozenset[_Text]]] = {}
    for (tokens, density, _), own in texts.items():
        votes.setdefault((tokens, density), Counter())[frozenset(own)] += 1
    chosen = {place: _most_common(sets) for place, sets in votes.items()}
    return [
        row
        for row in found
        if _text(row) in (wanted := chosen[row["tokens"], row["density"]]) and texts[_cell(row)] >= wanted
    ]


def _most_common(sets: Counter[frozenset[_Text]]) -> frozenset[_Text]:
    """Of those that are equally common, the largest."""
    return max(sets, key=lambda one: (sets[one], len(one)))


def _text(row: Row) -> _Text:
    """What was read: a version of a document, and the probe that it holds, if any."""
    return row["document"], row["digest"], row.get("probe"), row.get("depth")


def _cell(row: Row) -> _Cell:
    return row["tokens"], row["density"], row["family"]


def causal_pairs(tokens: int) -> float:
    """Of dense attention to the past."""
    return tokens * (tokens + 1) / 2


def all_pairs(tokens: int) -> float:
    """Of dense attention."""
    return float(tokens) ** 2


def whole_seeds(rows: Iterable[Row]) -> list[Row]:
    """The rows of the seeds that all families were run from, of models that are trained.

    Then the mean over seeds is over the same ones for every family.
    """
    found = list(rows)
    ran: dict[int, set[tuple[float, str]]] = {}
    for row in found:
        ran.setdefault(row["seed"], set()).add((row["density"], row["family"]))
    wanted = set().union(*ran.values())
    return [row for row in found if ran[row["seed"]] == wanted]


def per_document(rows: Iterable[Row], values: Callable[[Row], Mapping[str, float]]) -> list[Row]:
    """One row a document, of rows that hold a value for each of several.

    Its value is called so, and its document by the name that `values` has for it.
    """
    return [
        {
            **{name: row[name] for name in ("tokens", "family", "density", "seed", "pairs")},
            "document": document,
            "digest": row.get("digest", ""),
            "value": value,
        }
        for row in rows
        for document, value in values(row).items()
    ]


def compare(
    rows: Iterable[Row],
    measure: Callable[[Row], float],
    *,
    higher_is_better: bool = False,
    dense_pairs: Callable[[int], float] = causal_pairs,
) -> list[Comparison]:
    """Compare the families of every density with dense attention, and with the best of them.

    Parameters
    ----------
    rows : iterable of Row
        Those of several seeds or probes of a document are averaged.
    measure : function of a row
    higher_is_better : bool
        Which family is the best of its density.
    dense_pairs : function of a length
        Pairs that are a share of 1.

    Returns
    -------
    list of Comparison
        Lengths in ascending, densities in descending order; families from the best to the worst. Those that
        were not run on all documents are left out.
    """
    by_cell: dict[_Cell, dict[str, list[tuple[float, float]]]] = {}
    for row in complete_rows(rows):
        documents = by_cell.setdefault(_cell(row), {})
        share = row["pairs"] / dense_pairs(row["tokens"])
        documents.setdefault(row["document"], []).append((measure(row), share))
    means = {
        cell: {name: np.mean(found, axis=0) for name, found in documents.items()}
        for cell, documents in by_cell.items()
    }
    sign = -1.0 if higher_is_better else 1.0
    drafts: list[Comparison] = []
    for tokens, density in sorted({cell[:2] for cell in means}, key=lambda cell: (cell[0], -cell[1])):
        families = {cell[2]: found for cell, found in means.items() if cell[:2] == (tokens, density)}
        names = sorted(next(iter(families.values())))
        values = {family: np.array([found[name] for name in names]) for family, found in families.items()}
        order = sorted(values, key=lambda family: sign * values[family][:, 0].mean())
        yardstick = np.array([means[tokens, 1.0, DENSE][name][0] for name in names])
        for family in order:
            own = values[family][:, 0]
            drafts.append(
                Comparison(
                    tokens=tokens,
                    density=density,
                    family=family,
                    documents=len(own),
                    share=float(values[family][:, 1].mean()),
                    mean=bootstrap_interval(own),
                    to_dense=bootstrap_interval(own - yardstick),
                    best=family == order[0],
                    p_dense=None if family == DENSE else paired_p(own, yardstick),
                    p_best=None if family == order[0] else paired_p(own, values[order[0]][:, 0]),
                )
            )
    return _adjusted(drafts)


def _adjusted(drafts: Sequence[Comparison]) -> list[Comparison]:
    """The same with the p-values adjusted for all of them."""
    tests = {(at, "dense"): draft.p_dense for at, draft in enumerate(drafts)}
    tests |= {(at, "best"): draft.p_best for at, draft in enumerate(drafts)}
    made = {place: value for place, value in tests.items() if value is not None}
    adjusted = dict(zip(made, holm(list(made.values())), strict=True))
    return [
        replace(draft, p_dense=adjusted.get((at, "dense")), p_best=adjusted.get((at, "best")))
        for at, draft in enumerate(drafts)
    ]
