"""A number to be added to the score of every selected pair."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse

from ..errors import ArgumentError, FormatError, ShapeError
from ..formats import changes
from ..formats.csr import Csr, entries_of
from ..formats.work import Request
from ._change import Change, parameter

__all__ = ["Bias", "bias"]

_Array = npt.NDArray[Any]


class _Part(NamedTuple):
    """Numbers ``(..., stored)``, and the SciPy array whose stored entries they belong to, if there is one."""

    data: _Array
    owner: Any
    #: Whether the SciPy array is what was passed, and hence what is given back.
    whole: bool = False

    def entries(self, csr: Csr) -> npt.NDArray[np.int64] | None:
        """Where the numbers stand among a structure's entries, -1 for nowhere; None for all in order."""
        if self.owner is None:
            if self.data.shape[-1] != csr.nnz:
                raise ShapeError(
                    f"a bias of {self.data.shape[-1]} numbers a head for a pattern of {csr.nnz} pairs",
                    "a number for every pair, in the order of pattern.tocsr()",
                    "pass a SciPy CSR array if it has other pairs, or a list with one bias a head",
                )
            return None
        if self.owner.shape != csr.shape:
            raise ShapeError(
                f"a bias of shape {self.owner.shape} for a pattern of shape {csr.shape}",
                "one shape",
                "correct it",
            )
        indptr, indices = self.owner.indptr, self.owner.indices
        if np.array_equal(indptr, csr.indptr) and np.array_equal(indices, csr.indices):
            return None
        return entries_of(csr, indptr, indices)

    def numbers(self, csr: Csr, kind: np.dtype[Any]) -> _Array:
        """``(..., nnz)`` in a structure's order: pairs that are not stored get 0, repeated ones add up."""
        entries = self.entries(csr)
        if entries is None:
            return np.ascontiguousarray(self.data, kind)
        found = np.zeros((*self.data.shape[:-1], csr.nnz), kind)
        kept = entries >= 0
        np.add.at(found.T, entries[kept], self.data[..., kept].T)
        return found

    def given_back(self, gradient: _Array, csr: Csr) -> Any:
        """A gradient ``(..., nnz)`` in the form of this part; 0 for stored entries that are not selected."""
        entries = self.entries(csr)
        if entries is not None:
            gradient = np.where(entries >= 0, gradient[..., np.maximum(entries, 0)] if csr.nnz else 0, 0)
        data = gradient.reshape(self.data.shape).astype(self.data.dtype)
        if not self.whole:
            return data
        kind = (
            scipy.sparse.csr_array
            if isinstance(self.owner, scipy.sparse.sparray)
            else scipy.sparse.csr_matrix
        )
        return kind((data, self.owner.indices, self.owner.indptr), shape=self.owner.shape)


class Bias(Change):
    """See :func:`bias`."""

    kind = "bias"

    def __init__(self, parts: tuple[_Part, ...], by_head: bool, learnable: bool) -> None:
        self._parts, self._by_head, self.learnable = parts, by_head, learnable

    @property
    def key(self) -> Hashable:
        return self.kind, self.learnable

    def describe(self) -> str:
        if self._by_head:
            return f"bias: a number a pair, one bias for each of {len(self._parts)} heads"
        return f"bias: numbers of shape {self._parts[0].data.shape}, the last axis a number a pair"

    def bound(self, pattern: Any) -> Bias:
        """With plain numbers in the order of the pattern as it was given, if that is a SciPy CSR array."""
        if not (scipy.sparse.issparse(pattern) and pattern.format == "csr") or self._by_head:
            return self
        (part,) = self._parts
        if part.owner is not None or part.data.shape[-1] != pattern.nnz:
            return self
        return Bias((part._replace(owner=pattern),), False, self.learnable)

    def step(self, request: Request, lead: tuple[int, ...]) -> changes.PairBias:
        kind = request.accumulator
        if self._by_head:
            pieces = [
                part.numbers(csr, kind)
                for part, csr in zip(self._parts, self._structures(request), strict=True)
            ]
            ends = np.cumsum([piece.size for piece in pieces])
            starts = np.tile(ends - [piece.size for piece in pieces], request.batch)
            data = np.concatenate(pieces)
        else:
            data = self._parts[0].numbers(self._structure(request), kind)
            starts = self._owners(data.shape[:-1], (*lead, request.heads)) * data.shape[-1]
        return changes.PairBias(data.reshape(-1), starts.astype(np.int64), self.learnable)

    def _owners(self, axes: tuple[int, ...], wanted: tuple[int, ...]) -> _Array:
        """Which of the numbers along the axes before the last each head of the call has."""
        try:
            places = np.arange(int(np.prod(axes))).reshape(axes)
            return np.broadcast_to(places, wanted).reshape(-1)
        except ValueError:
            raise ShapeError(
                f"a bias with axes {axes} before the pairs, for a call with axes {wanted}",
                "axes that broadcast to (..., heads)",
                "pass one bias for all, one a head, or one a batch element and head",
            ) from None

    def _structure(self, request: Request) -> Csr:
        if len(set(request.which.reshape(-1).tolist())) > 1:
            raise ShapeError(
                "one bias for heads whose patterns differ", "a list with one bias a head", "pass such a list"
            )
        csr = request.structures[int(request.which.flat[0]) if request.which.size else 0]
        assert isinstance(csr, Csr)
        return csr

    def _structures(self, request: Request) -> list[Csr]:
        if len(self._parts) != request.heads:
            raise ShapeError(
                f"{len(self._parts)} biases for {request.heads} heads", "one a head", "pass as many"
            )
        if request.batch and (request.which != request.which[:1]).any():
            raise ShapeError(
                "a bias a head for patterns that differ from batch element to batch element",
                "patterns that are the same for all of them",
                "make a call for every batch element",
            )
        which = request.which[0] if request.batch else np.zeros(request.heads, np.int32)
        found = [request.structures[number] for number in which.tolist()]
        return [csr for csr in found if isinstance(csr, Csr)]

    def gradient(self, found: _Array, request: Request) -> Any:
        if not self._by_head:
            csr = self._structure(request)
            axes = self._parts[0].data.shape[:-1]
            return self._parts[0].given_back(found.reshape(*axes, csr.nnz), csr)
        results, start = [], 0
        for part, csr in zip(self._parts, self._structures(request), strict=True):
            results.append(part.given_back(found[start : start + csr.nnz], csr))
            start += csr.nnz
        return results


def bias(values: Any, *, learnable: bool = True) -> Bias:
    """``score + bias`` with a bias of its own for every selected pair.

    Parameters
    ----------
    values : SciPy CSR array, or array (..., nnz), or a list of either with one a head
        A SciPy CSR array of shape (n_q, n_k) is read as the matrix that it is: selected pairs that it does
        not store get 0, repeated entries add up, and what is not selected is ignored. An array has a number
        for every pair in the order of ``pattern.tocsr()``, or, if the pattern is passed as a SciPy CSR array,
        in the order of that; its axes before the last broadcast to (..., heads). Heads with patterns of their
        own take a list.
    learnable : bool
        Whether the backward pass returns the gradient: in the same form, for a SciPy array with the same
        indptr and indices and a number for every stored entry, 0 where it is not selected.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> from scipy import sparse
    >>> q = k = np.zeros((1, 3, 4))
    >>> table = sparse.csr_array(np.log([[1.0, 2, 1], [1, 1, 3], [1, 1, 1]]))
    >>> out = nsa.sparse_attention(q, k, np.eye(3)[None], nsa.patterns.full(3), scores=nsa.scores.bias(table))
    >>> (out[0, 1] * 5).round(6).tolist()
    [1.0, 1.0, 3.0]
    """
    if isinstance(values, list | tuple):
        if not values or not any(scipy.sparse.issparse(value) or np.ndim(value) for value in values):
            values = np.asarray(values)
        else:
            parts = tuple(_part(value) for value in values)
            for part in parts:
                if part.data.ndim != 1:
                    raise ShapeError(
                        f"a bias of shape {part.data.shape} in a list",
                        "one a head, (nnz,)",
                        "pass one array for all",
                    )
            return Bias(parts, True, learnable)
    return Bias((_part(values),), False, learnable)


def _part(values: Any) -> _Part:
    if scipy.sparse.issparse(values):
        from ..formats.scipy_arrays import from_scipy

        if values.format != "csr":
            raise FormatError(f"a bias as {values.format} array", "a SciPy CSR array", "call .tocsr() on it")
        from_scipy(values)  # every way to be malformed is refused there
        return _Part(parameter(values.data, "bias"), values, whole=True)
    data = parameter(values, "bias")
    if not data.ndim:
        raise ArgumentError(
            "a number as bias", "a number for every pair", "a constant changes no weight: leave it out"
        )
    return _Part(data, None)
