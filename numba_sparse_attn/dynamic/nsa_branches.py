"""The three branches of native sparse attention: compressed keys, selected blocks, a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import arrays
from ..formats.pieces import make_pieces
from ..patterns._arguments import check_flag, check_int
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from .compression import compress, compressed_length
from .nsa_blocks import nsa_blocks

__all__ = ["Branches", "nsa_branches"]


@dataclass(frozen=True, eq=False)
class Branches:
    """What the three calls of native sparse attention need besides q, k and v.

    Attributes
    ----------
    compressed : Pattern (n_q, stretches)
        Queries see the stretches that end where they stand or before: over compressed keys and values.
    selected : Pattern or HeadPatterns (n_q, n_k)
        By :func:`nsa_blocks`.
    window : Pattern (n_q, n_k)
    keys : array (..., kv_heads, stretches, d)
        The compressed keys, where k lies.
    """

    compressed: Pattern
    selected: Pattern | HeadPatterns
    window: Pattern
    keys: Any


def nsa_branches(
    q: Any,
    k: Any,
    budget: Any,
    window: int,
    *,
    block: int = 64,
    length: int = 32,
    stride: int = 16,
    first: int = 1,
    local: int = 2,
    query_block: int = 1,
    causal: bool = False,
    scale: float | None = None,
    compressed: Any = None,
) -> Branches:
    """Patterns of the three branches that native sparse attention (NSA, 2025) adds up with gates.

    ::

        out = gate_c * attention(q, compressed k, compressed v; compressed)
            + gate_s * attention(q, k, v; selected)
            + gate_w * attention(q, k, v; window)

    The gates, from 0 to 1, come from the model; :func:`numba_sparse_attn.gated_sum` adds, and has gradients.
    In the paper the branches have keys and values of their own, which changes nothing here but the arrays.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host or GPU memory.
    budget, block, first, local, query_block, scale
        Of the selected branch, as in :func:`nsa_blocks`.
    window : int
        Keys of the window: i' - window < j <= i' with i' = i + n_k - n_q where causal, else
        i' - window < j < i' + window.
    length, stride : int
        Keys in a stretch, and keys from one stretch to the next.
    causal : bool
    compressed : array (..., kv_heads, (n_k - length) // stride + 1, d), optional
        Compressed keys by a map of your own; means (:func:`compress`) if not given.

    Returns
    -------
    Branches

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 256, 16))
    >>> gates = np.full((2, 256, 3), 0.5)
    >>> found = nsa.dynamic.nsa_branches(q, k, 4, 32, block=16, length=8, stride=4, causal=True)
    >>> values = nsa.dynamic.compress(v, 8, 4)
    >>> outs = [
    ...     nsa.sparse_attention(q, found.keys, values, found.compressed),
    ...     nsa.sparse_attention(q, k, v, found.selected),
    ...     nsa.sparse_attention(q, k, v, found.window),
    ... ]
    >>> nsa.gated_sum(outs, gates).shape
    (2, 256, 16)
    """
    selected = nsa_blocks(
        q,
        k,
        budget,
        block=block,
        length=length,
        stride=stride,
        first=first,
        local=local,
        query_block=query_block,
        causal=causal,
        scale=scale,
        compressed=compressed,
    )
    if compressed is None:
        tokens = compress(k, length, stride)
    else:  # which the selection has checked
        tokens = compressed if arrays.in_device_memory(k) else arrays.as_array(compressed, "compressed")
    n_q, n_k = selected.shape
    return Branches(
        _stretches(n_q, n_k, length, stride, causal), selected, _window(n_q, n_k, window, causal), tokens
    )


def _stretches(n_q: int, n_k: int, length: int, stride: int, causal: bool) -> Pattern:
    """Query i sees stretch c where that ends in time: c * stride + length - 1 <= i + n_k - n_q."""
    count = compressed_length(n_k, length, stride)
    stretch = np.arange(count, dtype=np.int64)
    since = np.clip(stretch * stride + length - 1 - (n_k - n_q), 0, n_q) if causal else np.zeros_like(stretch)
    name = f"stretches(n={n_q}, n_keys={n_k}, length={length}, stride={stride}, causal={causal})"
    return Pattern.from_pieces(
        (n_q, count), make_pieces(rows=(since, n_q), columns=(stretch, stretch + 1)), name=name
    )


def _window(n_q: int, n_k: int, window: int, causal: bool) -> Pattern:
    window, causal = check_int("window", window, low=1), check_flag("causal", causal)
    here = n_k - n_q
    band = (here - window + 1, here if causal else here + window - 1)
    pieces = make_pieces(rows=(0, n_q), columns=(0, n_k), differences=band)
    return Pattern.from_pieces((n_q, n_k), pieces, name=f"window({window}, causal={causal})")
