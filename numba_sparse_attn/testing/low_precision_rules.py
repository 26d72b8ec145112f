"""Other normalisers than softmax the way hardware computes them, for the budgets.

The rules are the oracle's; what is low is the precision of what goes in and comes out. Scores are those of
the accumulator's type, lse is found from these and rounded, weights follow from scores and lse, and
everything is off by a unit in its last place at random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Rounding", "normalised_heads"]

Array = npt.NDArray[Any]


class Rounding(NamedTuple):
    """What makes a computation one of low precision; see :func:`.budget.low_precision_attention`."""

    loose: Callable[[Array], Array]
    rounded: Callable[[Array], Array]
    product: Callable[[Array, Array], Array]


def normalised_heads(
    rule: Any,
    numbers: npt.NDArray[np.int64],
    arrays: tuple[Array, Array, Array, Array],
    selected: Array,
    scale: float,
    gradients: bool,
    rounding: Rounding,
) -> dict[str, Array]:
    """Results of stacked heads, with their `numbers` among the heads of a call, in the accumulator's type."""
    q, k, v, dout = arrays
    loose, rounded, product = rounding
    kind = q.dtype.type
    scores = loose(product(q, k.swapaxes(1, 2)) * kind(scale))
    scores = np.where(selected, scores, kind(-np.inf))

    def of_all(compute: Callable[[int, int], Array]) -> Array:
        return np.stack([compute(place, number) for place, number in enumerate(numbers.tolist())])

    found = [
        rule.weights(scores[place].astype(np.float64), selected[place], number)
        for place, number in enumerate(numbers.tolist())
    ]
    weights = loose(np.stack([one.astype(kind) for one, _ in found]))
    lse = loose(np.stack([one.astype(kind) for _, one in found]))
    results = {"out": product(rounded(weights), v), "lse": lse}
    if not gradients:
        return results
    distances = np.where(
        selected, loose(scores - np.where(np.isneginf(lse), kind(0.0), lse)[..., None]), kind(0.0)
    )
    weights = of_all(lambda place, number: rule.weight(distances[place].astype(np.float64), number))
    weights = np.where(selected, loose(weights.astype(kind)), kind(0.0))
    some = weights != 0.0 if rule.sparse else selected
    dweights = np.where(some, product(dout, v.swapaxes(1, 2)), kind(0.0))
    slopes = loose(of_all(lambda place, number: rule.slopes(weights[place], number)).astype(kind))
    delta = loose(of_all(lambda place, number: rule.delta(slopes[place], dweights[place])).astype(kind))
    dscores = rounded(loose(np.where(some, slopes * (dweights - delta), kind(0.0))))
    results["dq"] = loose(product(dscores, k) * kind(scale))
    results["dk"] = loose(product(dscores.swapaxes(1, 2), q) * kind(scale))
    results["dv"] = product(rounded(weights).swapaxes(1, 2), dout)
    of_parameter = of_all(lambda place, number: rule.of_parameter(weights[place], dweights[place], number))
    results["dalpha"] = of_parameter.astype(kind)
    return results
