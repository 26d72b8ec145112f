"""The oracle behind the engines' three names, and its rule for every normaliser."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .formats.changes import Changes
from .formats.csr import Csr
from .formats.work import Request
from .normalisers import Entmax, Normaliser, Sigmoid
from .scores._dense import dense_steps

__all__ = ["ReferenceEngine", "rule_of"]

#: Largest mask that is built, in entries of a byte.
_MOST_ENTRIES = 1 << 31


def rule_of(normaliser: Normaliser | None, heads: int) -> Any:
    """The oracle's rule for a normaliser."""
    from . import reference, reference_normalisers

    if normaliser is None:
        return reference.SOFTMAX
    if isinstance(normaliser, Entmax):
        return reference_normalisers.EntmaxRule([normaliser.alpha_of(head) for head in range(heads)])
    if isinstance(normaliser, Sigmoid):
        return reference_normalisers.SigmoidRule(normaliser.bias)
    return reference_normalisers.PlusOneRule()


class ReferenceEngine:
    """The dense float64 oracle behind the engines' three names."""

    @staticmethod
    def why_not(request: Request) -> list[str]:
        size = request.batch * request.heads * request.n_q * request.n_k
        if len(request.structures) == 1:
            size = request.n_q * request.n_k
        if size > _MOST_ENTRIES:
            return [f"dense masks of up to {_MOST_ENTRIES} entries, and this call has {size}"]
        return []

    @staticmethod
    def _mask(request: Request, lead: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        masks = np.zeros((len(request.structures), request.n_q, request.n_k), np.bool_)
        for mask, structure in zip(masks, request.structures, strict=True):
            assert isinstance(structure, Csr)
            mask[np.repeat(np.arange(request.n_q), np.diff(structure.indptr)), structure.indices] = True
        if len(masks) == 1:
            return masks[0]
        return masks[request.which.reshape(*lead, request.heads)]

    def forward(
        self, request: Request, q: Any, k: Any, v: Any, out: Any, lse: Any, changes: Changes | None = None
    ) -> None:
        from . import reference

        mask = self._mask(request, q.shape[:-3])
        dense = [made for made, _ in dense_steps(request, changes)]
        settings: Any = {"changes": dense, "sink": changes.sink if changes else None}
        settings["rule"] = rule_of(request.normaliser, request.heads)
        result, result_lse = reference.forward(q, k, v, mask, request.scale, **settings)
        out[...] = result
        if lse is not None:
            lse[...] = result_lse

    def backward(
        self,
        request: Request,
        dout: Any,
        q: Any,
        k: Any,
        v: Any,
        out: Any,
        lse: Any,
        dq: Any,
        dk: Any,
        dv: Any,
        dalpha: npt.NDArray[Any] | None = None,
        changes: Changes | None = None,
    ) -> list[Any]:
        from . import reference

        mask = self._mask(request, q.shape[:-3])
        dense = dense_steps(request, changes)
        settings: Any = {"changes": [made for made, _ in dense], "sink": changes.sink if changes else None}
        dparameter = np.zeros(request.heads)
        settings |= {"rule": rule_of(request.normaliser, request.heads), "dparameter": dparameter}
        *gradients, found, _ = reference.backward_of_changes(dout, q, k, v, mask, request.scale, **settings)
        if dalpha is not None:
            dalpha[...] = dparameter
        for target, gradient in zip((dq, dk, dv), gradients, strict=True):
            target[...] = gradient
        return [collect(gradient) for (_, collect), gradient in zip(dense, found, strict=True)]
