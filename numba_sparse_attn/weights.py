"""Attention weights as SciPy arrays: the sparse matrix that attention multiplies the values with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from .normalisers import Normaliser
from .normalisers.description import check_normaliser
from .patterns.pattern import Pattern

__all__ = ["attention_weights"]


def attention_weights(
    q: Any, k: Any, pattern: Any, *, scale: float | None = None, normaliser: Normaliser | None = None
) -> Any:
    """``softmax(scale * q k^T over the selected pairs)``, with every pair's weight stored.

    Attention itself never forms these; they take 8 bytes a pair (12 for float64) and head.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        On the host, as :func:`sparse_attention` takes them; computed in float64.
    pattern
        As in :func:`sparse_attention`.
    scale : float, optional
        Factor on q k^T; ``1 / sqrt(d)`` if not given.
    normaliser : Normaliser, optional
        As in :func:`sparse_attention`. Its zeros are stored, too; SciPy's ``eliminate_zeros()`` drops them.

    Returns
    -------
    scipy.sparse.csr_array (n_q, n_k), or a list of them
        One array for ``(n, d)`` inputs, else one a head, in lists nested as the axes before ``n`` are:
        ``weights[head]``, or ``weights[batch][head]``. float32, float64 for float64 inputs. Every selected
        pair is stored, also where its weight is too small for the type and is 0. Rows sum to 1 (softmax and
        the entmax family); those of queries without keys are empty.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((4, 8))
    >>> nsa.attention_weights(q, k, nsa.patterns.sliding_window(4, 1, causal=True)).toarray()
    array([[1. , 0. , 0. , 0. ],
           [0.5, 0.5, 0. , 0. ],
           [0. , 0.5, 0.5, 0. ],
           [0. , 0. , 0.5, 0.5]])
    """
    # Neither is needed by those who never ask for weights, and both take time to import.
    from .analysis._inputs import Call, members_of
    from .cpu.row_weights import row_weights

    call = Call.of(q, k, k, scale)
    chosen = call.pattern(pattern)
    which = call.which(chosen)
    checked = check_normaliser(normaliser, call.sizes.heads)
    dtype = np.dtype(np.float64 if call.sizes.dtype == np.float64 else np.float32)
    queries, keys = call.heads_first(call.q), call.heads_first(call.k)
    group = call.sizes.heads // call.sizes.kv_heads
    members = members_of(chosen)

    def head(place: tuple[int, int]) -> sparse.csr_array:
        batch, number = place
        member: Pattern = members[which[place]]
        weights = row_weights(
            queries[batch, number],
            keys[batch, number // group],
            call.scale,
            member.rows(),
            dtype,
            checked,
            number,
        )
        # With index arrays of its own: SciPy's eliminate_zeros() works in place.
        pairs = member.tocsr()
        found = sparse.csr_array((weights, pairs.indices, pairs.indptr), shape=chosen.shape)
        found.has_canonical_format = True
        return found

    if call.sizes.flat:
        return head((0, 0))
    batches = iter(range(call.sizes.batch))

    def heads() -> list[sparse.csr_array]:
        batch = next(batches)
        return [head((batch, number)) for number in range(call.sizes.heads)]

    return _nested(heads, call.sizes.lead)


def _nested(make: Callable[[], Any], lead: tuple[int, ...]) -> Any:
    """What `make` gives, call after call, in lists nested as the axes `lead` are."""
    return [_nested(make, lead[1:]) for _ in range(lead[0])] if lead else make()
