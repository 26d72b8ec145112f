"""Sigmoid attention: every weight by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ArgumentError
from .description import Normaliser

__all__ = ["Sigmoid", "sigmoid"]


@dataclass(frozen=True)
class Sigmoid(Normaliser):
    """Description of sigmoid attention; a bias of None stands for minus the logarithm of the row's length."""

    bias: float | None = None

    @property
    def name(self) -> str:
        """With its bias."""
        return f"sigmoid(bias={'-log(keys of the query)' if self.bias is None else f'{self.bias:g}'})"

    @property
    def row_lse(self) -> float:
        """Minus the bias."""
        return math.nan if self.bias is None else -self.bias


def sigmoid(bias: float | None = None) -> Sigmoid:
    """Weights ``1 / (1 + exp(-(s + bias)))``, each of which depends on its own score alone.

    Parameters
    ----------
    bias : float, optional
        Added to every score. If not given, it is ``-log(n)`` for a query that sees n keys: weights of a query
        with scores around 0 then sum to about 1, for every length of row. (Ramapuram et al., "Theory,
        analysis, and best practices for sigmoid self-attention", 2024, take -log of the sequence length.)

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k = np.zeros((2, 4)), np.zeros((2, 4))
    >>> nsa.attention_weights(q, k, nsa.patterns.causal(2), normaliser=nsa.normalisers.sigmoid()).toarray()
    array([[0.5       , 0.        ],
           [0.33333333, 0.33333333]])
    """
    if bias is None:
        return Sigmoid()
    try:
        value = float(bias)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentError(f"bias={bias!r}", "a finite number", "leave it out for -log(keys of the query)")
    return Sigmoid(value)
