"""k-means on the unit sphere: what is near is what points the same way."""

from __future__ import annotations

import numpy as np

from ..errors import ArgumentError
from ..patterns._random import distinct_choices
from ._call import Floats, Integers

__all__ = ["cluster_means", "starting_points", "unit"]


def unit(rows: Floats) -> Floats:
    """Rows scaled to length 1; a row of zeros stays."""
    lengths = np.sqrt(np.einsum("...d,...d->...", rows, rows))[..., None]
    with np.errstate(invalid="ignore"):  # infinity by infinity is NaN: a direction that nothing is near to
        return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths != 0.0)


def starting_points(rows: Floats, count: int, seed: int, stream: int) -> Floats:
    """`count` different rows, chosen by the numbered random stream of a seed."""
    if count > len(rows):
        raise ArgumentError(
            f"{count} clusters of {len(rows)} keys", "at most as many clusters as keys", "ask for fewer"
        )
    number = np.array([stream], np.int64)
    _, chosen = distinct_choices(seed, number, np.array([count]), np.array([len(rows)]))
    return rows[chosen]


def cluster_means(rows: Floats, of_row: Integers, centroids: Floats) -> Floats:
    """Mean of the rows of every cluster; where there are none, its centroid."""
    sums = np.zeros_like(centroids)
    np.add.at(sums, of_row, rows)
    counts = np.bincount(of_row, minlength=len(centroids))[:, None]
    return np.where(counts > 0, sums / np.maximum(counts, 1).astype(sums.dtype), centroids)
