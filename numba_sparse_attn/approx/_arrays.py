"""Arrays of any library by their own library: what NumPy, CuPy, PyTorch and JAX all understand."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from ..errors import DtypeError, ShapeError

__all__ = [
    "check_shapes",
    "group_queries",
    "library_of",
    "narrow",
    "scale_of",
    "smallest_normal",
    "summed_to",
    "widen",
]

_LIBRARIES = {"cupy": "cupy", "torch": "torch", "jax": "jax.numpy", "jaxlib": "jax.numpy"}
#: Names of the types that are taken, as NumPy writes them, and what sums of them are in.
_SUMS = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}


def library_of(array: Any) -> Any:
    """The module whose functions take the array: NumPy, ``jax.numpy``, CuPy or PyTorch."""
    return importlib.import_module(_LIBRARIES.get(type(array).__module__.partition(".")[0], "numpy"))


def widen(*arrays: Any) -> tuple[Any, ...]:
    """The arrays in the type that sums are in, all of them of one type and one library.

    Examples
    --------
    >>> import numpy as np
    >>> [array.dtype.name for array in widen(np.ones(2, np.float16), np.ones(3, np.float16))]
    ['float32', 'float32']
    """
    kinds = {(library_of(array).__name__, _name(array)) for array in arrays}
    if len(kinds) > 1 or next(iter(kinds))[1] not in _SUMS:
        given = ", ".join(sorted(f"{name} of {library}" for library, name in kinds))
        raise DtypeError(
            f"arrays of {given}",
            "float16, bfloat16, float32 or float64, all arrays the same and of one library",
            "convert them to one type",
        )
    target = _SUMS[next(iter(kinds))[1]]
    return tuple(_converted(array, target) for array in arrays)


def narrow(array: Any, like: Any) -> Any:
    """The array in the type of another."""
    return _converted(array, _name(like))


def _name(array: Any) -> str:
    return str(array.dtype).rpartition(".")[2]


def _converted(array: Any, name: str) -> Any:
    if _name(array) == name:
        return array
    library = library_of(array)
    if library.__name__ == "torch":
        return array.to(getattr(library, name))
    if name == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array.astype(np.dtype(name))


def scale_of(scale: float | None, head_dim: int) -> float:
    """``1 / sqrt(d)`` unless given."""
    return 1.0 / math.sqrt(head_dim) if scale is None else float(scale)


def smallest_normal(like: Any) -> float:
    """The smallest number of an array's type with all its digits."""
    return float(np.finfo(_name(like)).tiny)


def check_shapes(q: Any, k: Any, v: Any) -> None:
    """Refuse what is not (..., heads, n_q, d), (..., kv_heads, n_k, d) and (..., kv_heads, n_k, d_v)."""
    shapes = tuple(q.shape), tuple(k.shape), tuple(v.shape)
    fits = min(map(len, shapes)) >= 3 and len({shape[:-3] for shape in shapes}) == 1
    fits = fits and shapes[0][-1] == shapes[1][-1] and shapes[1][:-1] == shapes[2][:-1]
    if not fits or shapes[1][-3] == 0 or shapes[0][-3] % shapes[1][-3]:
        raise ShapeError(
            f"q, k, v of shapes {', '.join(map(str, shapes))}",
            "(..., heads, n_q, d), (..., kv_heads, n_k, d) and (..., kv_heads, n_k, d_v), heads a multiple "
            "of kv_heads",
            "reshape them",
        )


def group_queries(array: Any, kv_heads: int) -> Any:
    """``(..., heads, n, d)`` as ``(..., kv_heads, group, n, d)``."""
    return array.reshape((*array.shape[:-3], kv_heads, -1, *array.shape[-2:]))


def summed_to(array: Any, shape: tuple[int, ...]) -> Any:
    """A gradient summed over the axes along which an array of `shape` was repeated."""
    library = library_of(array)
    while len(array.shape) > len(shape):
        array = library.sum(array, axis=0)
    for axis, length in enumerate(shape):
        if length == 1 and array.shape[axis] != 1:
            array = library.sum(array, axis=axis, keepdims=True)
    return array
