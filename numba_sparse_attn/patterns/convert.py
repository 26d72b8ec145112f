"""What is accepted as a pattern: SciPy arrays, masks, index arrays, and lists of those."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from ..errors import FormatError, PatternError
from .heads import HeadPatterns
from .pattern import Pattern

__all__ = ["as_pattern"]


def as_pattern(value: Any, *, keys: int | None = None, name: str | None = None) -> Any:
    """Anything that says which query sees which key, as a Pattern (or HeadPatterns).

    Parameters
    ----------
    value
        A Pattern or HeadPatterns (returned as it is), a SciPy sparse array or matrix, a boolean mask
        ``(n_q, n_k)`` or ``(..., heads, n_q, n_k)``, an integer index array ``(n_q, k)`` or
        ``(..., heads, n_q, k)`` padded with -1, or a sequence of such values, one a head (nested once
        more: one a batch element). Duplicates and unsorted indices mean the set.
    keys : int, optional
        n_k for index arrays, which do not know it; n_q if not given.
    name : str, optional

    Returns
    -------
    Pattern or HeadPatterns

    Examples
    --------
    >>> import numpy as np
    >>> as_pattern(np.tri(3, dtype=bool)).nnz
    6
    >>> as_pattern(np.array([[0, -1], [1, 0], [2, 0]])).nnz
    5
    """
    if isinstance(value, Pattern | HeadPatterns):
        return value
    if scipy.sparse.issparse(value):
        from ..formats.scipy_arrays import from_scipy

        return Pattern.from_csr(from_scipy(value), name=name or f"{value.format} array")
    if isinstance(value, list | tuple):
        if not value:
            raise PatternError("an empty sequence of patterns", "one pattern a head", "pass at least one")
        if not isinstance(_first_leaf(value), int | np.integer | np.bool_):
            return _stack([as_pattern(item, keys=keys) for item in value])
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        return _from_array(value, keys, name)
    raise FormatError(
        f"a pattern of type {type(value).__name__}",
        "a Pattern, a SciPy sparse array, a boolean mask, an index array padded with -1, or a list of those",
        "convert it to one of these",
    )


def _first_leaf(value: Any) -> Any:
    """What a nested sequence is a sequence of: numbers make an array, anything else a list of heads."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return value


def _stack(parts: list[Any]) -> HeadPatterns:
    """Heads from patterns, or batch elements from stacks of heads."""
    if all(isinstance(part, Pattern) for part in parts):
        members = list({id(part): part for part in parts}.values())
        position = {id(member): number for number, member in enumerate(members)}
        return HeadPatterns(members, [position[id(part)] for part in parts])
    stacks = [part.heads(1) if isinstance(part, Pattern) else part for part in parts]
    if len({stack.member_of.shape for stack in stacks}) > 1:
        raise PatternError(
            f"head counts {[stack.member_of.shape for stack in stacks]} in one batch",
            "the same number of heads for every batch element",
            "give every batch element as many patterns as there are heads",
        )
    members, index = [], []
    for stack in stacks:
        index.append(stack.member_of + np.int32(len(members)))
        members.extend(stack.members)
    return HeadPatterns(members, np.stack(index))


def _from_array(array: npt.NDArray[Any], keys: int | None, name: str | None) -> Any:
    """A mask or an index array; leading axes are batch and heads."""
    if array.ndim < 2:
        raise FormatError(
            f"an array with {array.ndim} axes as a pattern",
            "a boolean mask (..., n_q, n_k) or an index array (..., n_q, k)",
            "add the missing axes",
        )
    if array.ndim > 2:
        lead = array.shape[:-2]
        count = math.prod(lead)
        # Without any head there still is a shape to remember: that of an empty pattern.
        matrix_shape = array.shape[-2:]
        flat = array.reshape(count, *matrix_shape) if count else np.zeros((1, *matrix_shape), array.dtype)
        members = [_from_array(matrix, keys, name) for matrix in flat]
        return HeadPatterns(members, np.arange(count).reshape(lead))
    if array.dtype == np.bool_:
        from ..formats.masks import from_mask

        return Pattern.from_csr(from_mask(array), name=name or "mask")
    from ..formats.indices import from_indices

    return Pattern.from_csr(
        from_indices(array, array.shape[0] if keys is None else keys), name=name or "indices"
    )
