"""One of every normaliser, for the tests of engines."""

from __future__ import annotations

import numpy as np

from numba_sparse_attn import normalisers

NORMALISERS = {
    "softmax_plus_one": normalisers.softmax_plus_one(),
    "sigmoid": normalisers.sigmoid(),
    "sigmoid with a bias": normalisers.sigmoid(-1.5),
    "sparsemax": normalisers.sparsemax(),
    "entmax15": normalisers.entmax15(),
    "entmax": normalisers.entmax(1.2),
}


def learned(heads):
    """An alpha for every head."""
    return normalisers.entmax(np.linspace(1.1, 2.0, heads))
