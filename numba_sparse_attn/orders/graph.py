"""Orders for graphs, found from their structure."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from ..errors import PatternError
from .order import Order

__all__ = ["reverse_cuthill_mckee"]


def reverse_cuthill_mckee(pattern: Any) -> Order:
    """Tokens in the order of reverse Cuthill-McKee: who sees each other stands close to each other.

    It finds the band of a mesh or of a road network again, however its vertices are numbered; random graphs
    and graphs with hubs have none.

    Parameters
    ----------
    pattern : Pattern or SciPy sparse array
        As many queries as keys. What sees and what is seen counts alike.

    Returns
    -------
    Order

    Notes
    -----
    Cost: O(pairs) time and memory, on the host; about 0.1 us a pair. Not tried by a plan on its own.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> ring = patterns.sliding_window(6, 1).tocsr()[[0, 3, 1, 4, 2, 5]][:, [0, 3, 1, 4, 2, 5]]
    >>> order = reverse_cuthill_mckee(ring)
    >>> ring[order.queries][:, order.keys].nonzero()[0].tolist()
    [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5]
    """
    n_q, n_k = pattern.shape
    if n_q != n_k:
        raise PatternError(
            f"a pattern of {n_q} queries and {n_k} keys",
            "as many queries as keys, numbered alike",
            "make an Order of two permutations instead",
        )
    pairs = sparse.csr_array(pattern if sparse.issparse(pattern) else pattern.tocsr()).astype(np.bool_)
    both = sparse.csr_array(pairs + pairs.T)
    places = csgraph.reverse_cuthill_mckee(both, symmetric_mode=True) if n_q else np.zeros(0, np.int32)
    return Order(places, name="reverse Cuthill-McKee")
