"""The entmax family: weights that sum to one and may be exactly zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .description import Normaliser

__all__ = ["Entmax", "entmax", "entmax15", "sparsemax"]

_NAMES = {2.0: "sparsemax", 1.5: "entmax15"}


@dataclass(frozen=True)
class Entmax(Normaliser):
    """Description of alpha-entmax.

    Attributes
    ----------
    alphas : tuple of float
        One for all query heads, or one for each.
    per_head : bool
        Whether alpha was given as an array: then its gradient is asked for, too.
    """

    alphas: tuple[float, ...]
    per_head: bool = False

    @property
    def name(self) -> str:
        """With its alpha, or the range of them."""
        if self.per_head:
            return f"entmax(alpha a head, {min(self.alphas):g} to {max(self.alphas):g})"
        return _NAMES.get(self.alphas[0], f"entmax({self.alphas[0]:g})")

    @property
    def learnable(self) -> bool:
        """An array of alphas is a parameter, a number is a setting."""
        return self.per_head

    def check(self, heads: int) -> None:
        """As many alphas as query heads."""
        if self.per_head and len(self.alphas) != heads:
            raise ArgumentError(
                f"{len(self.alphas)} alphas for {heads} query heads",
                "one number for all query heads, or an array with one for each",
                "pass as many alphas as there are query heads",
            )

    def alpha_of(self, head: int) -> float:
        """alpha of a query head."""
        return self.alphas[head] if self.per_head else self.alphas[0]

    def step_of(self, head: int) -> float:
        """What alpha has above 1."""
        return self.alpha_of(head) - 1.0


def entmax(alpha: Any) -> Entmax:
    """Weights ``max(0, 1 + (alpha - 1) (s - lse)) ** (1 / (alpha - 1))`` that sum to 1.

    Between softmax, which it becomes as alpha falls to 1, and sparsemax, which it is at 2: the larger alpha,
    the more weights are exactly zero.

    Parameters
    ----------
    alpha : float, or array (heads,)
        Above 1 and at most 2. A number is a setting of the call. An array, one for every query head, is a
        parameter that can be learned: the backward pass then returns ``dalpha``, shaped like it, as a fourth
        gradient: that of ``sum(dout * out)`` with respect to each head's alpha, summed over batch elements
        and queries. Arrays have to be in host memory.

    Notes
    -----
    With p a row of weights, g their incoming gradients and u = p ** (2 - alpha) on the support, 0 elsewhere:

    ::

        ds_j = u_j (g_j - delta),    delta = sum(u g) / sum(u)
        dalpha = sum over j of w_j (g_j - delta),
        w_j = p_j ((z_j - 1) / z_j - log z_j) / (alpha - 1)^2,    z_j = p_j ** (alpha - 1)

    The number `lse` is found exactly, by Newton steps that never pass it, however long the row. Keys without
    weight are never multiplied with their values, forward or backward. New alphas make a new plan, in 0.15 ms
    where the pattern's rows are known.

    Peters, Niculae and Martins, "Sparse sequence-to-sequence models", 2019; Correia, Niculae and Martins,
    "Adaptively sparse transformers", 2019.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k, v, dout = np.random.default_rng(0).standard_normal((4, 2, 16, 8))
    >>> alpha = np.array([1.2, 1.8])
    >>> out, pullback = nsa.vjp(q, k, v, nsa.patterns.causal(16), normaliser=nsa.normalisers.entmax(alpha))
    >>> dq, dk, dv, dalpha = pullback(dout)
    >>> dalpha.shape
    (2,)
    """
    try:
        values = np.asarray(alpha, np.float64)
    except (TypeError, ValueError):
        values = np.full((), np.nan)
    if values.ndim > 1 or not values.size or not ((values > 1.0) & (values <= 2.0)).all():
        raise ArgumentError(
            f"alpha={alpha!r}",
            "a number above 1 and at most 2, or an array of them, one for every query head",
            "use softmax (no normaliser) for 1, and clip what is learned",
        )
    return Entmax(tuple(values.reshape(-1).tolist()), values.ndim == 1)


def entmax15() -> Entmax:
    """Weights ``max(0, 1 + (s - lse) / 2) ** 2`` that sum to 1: :func:`entmax` with alpha 1.5.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k = np.array([[1.0]]), np.array([[2.0], [1.0], [-1.0]])
    >>> weights = nsa.attention_weights(q, k, np.ones((1, 3), bool), normaliser=nsa.normalisers.entmax15())
    >>> weights.toarray().round(3).tolist()
    [[0.831, 0.169, 0.0]]
    """
    return Entmax((1.5,))


def sparsemax() -> Entmax:
    """Weights ``max(0, 1 + s - lse)`` that sum to 1: the point of the simplex nearest to the scores.

    :func:`entmax` with alpha 2. Martins and Astudillo, "From softmax to sparsemax", 2016.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k = np.array([[1.0]]), np.array([[2.0], [1.5], [-1.0]])
    >>> weights = nsa.attention_weights(q, k, np.ones((1, 3), bool), normaliser=nsa.normalisers.sparsemax())
    >>> weights.toarray().tolist()
    [[0.75, 0.25, 0.0]]
    """
    return Entmax((2.0,))
