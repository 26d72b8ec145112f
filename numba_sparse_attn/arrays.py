"""The front door for arrays: what came in, whether it fits, and what goes out.

Every check of a call's arrays is here and happens before anything is computed. Strides are the
engines' business: nothing is copied here except arrays in the other byte order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .errors import ArgumentError, DtypeError, EngineError, ShapeError

__all__ = [
    "DTYPES",
    "Dimensions",
    "as_array",
    "check_arrays",
    "check_dtype",
    "check_scale",
    "host_array",
    "in_device_memory",
    "output_array",
]

Array = npt.NDArray[Any]
_Checked = TypeVar("_Checked", bound="ArrayLike")

#: Element types that attention is computed in.
DTYPES = tuple(np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))

#: DLPack's numbers for memory that the host reads: its own, and pinned memory of CUDA.
_HOST_MEMORY = (1, 3)

_DTYPE_ADVICE = "convert q, k and v to one of them with .astype(...)"
_LAYOUT = (
    "q (..., heads, n_q, d), k (..., kv_heads, n_k, d), v (..., kv_heads, n_k, d_v), or all three (n, d)"
)


class ArrayLike(Protocol):
    """What the checks look at: a NumPy array has it, and so has a view of an array in GPU memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...


@dataclass(frozen=True)
class Dimensions:
    """Sizes of one call. ``lead`` are the axes before ``heads``; `flat` says that there was no heads axis."""

    lead: tuple[int, ...]
    heads: int
    kv_heads: int
    n_q: int
    n_k: int
    head_dim: int
    value_dim: int
    dtype: np.dtype[Any]
    flat: bool

    @property
    def batch(self) -> int:
        """Product of the axes before ``heads``."""
        return math.prod(self.lead)


def as_array(value: Any, name: str) -> Array:
    """A NumPy array over the same memory, or a refusal that says why not.

    Takes NumPy arrays and anything on the host that speaks DLPack or NumPy's array protocol.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise DtypeError(
            f"{name} is a masked array",
            "plain arrays",
            "pass the mask as a pattern and the data as numpy.asarray(data)",
        )
    if isinstance(value, np.ndarray):
        array = np.asarray(value)
    elif hasattr(value, "__dlpack__"):
        array = np.from_dlpack(value)
    else:
        array = np.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def host_array(value: Any, name: str) -> Array:
    """As :func:`as_array`, for what is computed on the host only: arrays in GPU memory are refused."""
    if in_device_memory(value):
        raise EngineError(
            f"{name} in GPU memory",
            "arrays in host memory, for this function",
            f"copy {name} to a NumPy array first",
        )
    return as_array(value, name)


def in_device_memory(value: Any) -> bool:
    """Whether an array of another library says that it is not on the host."""
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        try:
            return int(value.__dlpack_device__()[0]) not in _HOST_MEMORY
        except BufferError:  # an array in several memories has no answer
            return True
    return hasattr(type(value), "__cuda_array_interface__")


def check_dtype(dtype: Any, name: str = "dtype") -> np.dtype[Any]:
    """The dtype object of a supported element type."""
    try:
        found = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        shown = found.name
    except TypeError:
        found, shown = np.dtype(object), repr(dtype)
    if found not in DTYPES:
        raise DtypeError(
            f"{name} of type {shown}", "float16, bfloat16 (ml_dtypes), float32, float64", _DTYPE_ADVICE
        )
    return found


def check_scale(scale: float | None, head_dim: int) -> float:
    """The factor on q k^T: 1 / sqrt(head_dim) unless given."""
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    try:
        value = float(scale)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentError(f"scale={scale!r}", "a finite number", "leave it out for 1 / sqrt(head_dim)")
    return value


def check_arrays(q: ArrayLike, k: ArrayLike, v: ArrayLike) -> Dimensions:
    """Sizes of a call, after every check that needs no pattern."""
    for array, name in ((q, "q"), (k, "k"), (v, "v")):
        check_dtype(array.dtype, name)
        if array.ndim < 2:
            raise ShapeError(f"{name} with shape {array.shape}", _LAYOUT, "add the missing axes")
    if not q.dtype == k.dtype == v.dtype:
        raise DtypeError(
            f"q, k, v of types {q.dtype.name}, {k.dtype.name}, {v.dtype.name}",
            "one type for all three",
            _DTYPE_ADVICE,
        )
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if not q.ndim == k.ndim == v.ndim:
        raise ShapeError(shapes, _LAYOUT, "give all three the same number of axes")
    flat = q.ndim == 2
    if not flat and not q.shape[:-3] == k.shape[:-3] == v.shape[:-3]:
        raise ShapeError(
            shapes, "equal axes before the heads axis", "use numpy.broadcast_to, which copies nothing"
        )
    heads = 1 if flat else q.shape[-3]
    kv_heads = 1 if flat else k.shape[-3]
    if not flat and v.shape[-3] != kv_heads:
        raise ShapeError(shapes, "as many heads in v as in k", "make their heads axes equal")
    if kv_heads < 1 or heads < 1 or heads % kv_heads:
        raise ShapeError(
            f"{heads} query heads over {kv_heads} key heads",
            "heads a positive multiple of kv_heads",
            "repeat or drop key heads until it divides",
        )
    if k.shape[-2] != v.shape[-2]:
        raise ShapeError(shapes, "as many values as keys", "make k.shape[-2] and v.shape[-2] equal")
    if q.shape[-1] != k.shape[-1]:
        raise ShapeError(shapes, "q and k of one head dimension", "make q.shape[-1] and k.shape[-1] equal")
    if q.shape[-1] < 1 or v.shape[-1] < 1:
        raise ShapeError(
            shapes, "head dimensions of at least 1", "drop the call: there is nothing to multiply"
        )
    return Dimensions(
        lead=() if flat else q.shape[:-3],
        heads=heads,
        kv_heads=kv_heads,
        n_q=q.shape[-2],
        n_k=k.shape[-2],
        head_dim=q.shape[-1],
        value_dim=v.shape[-1],
        dtype=q.dtype,
        flat=flat,
    )


def output_array(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: tuple[Array, ...]) -> Array:
    """`out` if it can take the result, else a new array."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray):
        raise DtypeError(
            f"out of type {type(out).__name__}", "a NumPy array", "leave out= away to get a new one"
        )
    if out.shape != shape or out.dtype != dtype or not out.flags.writeable:
        given = f"out with shape {out.shape}, type {out.dtype.name}, writeable={out.flags.writeable}"
        raise ShapeError(given, f"a writeable array of shape {shape} and type {dtype.name}", "allocate it so")
    if any(np.may_share_memory(out, array) for array in inputs):
        raise ShapeError("out that overlaps an input", "memory of its own", "pass a fresh array")
    return out


def with_heads_axis(array: Array, flat: bool) -> Array:
    """A view with the heads axis that a flat (n, d) array lacks."""
    return array[None] if flat else array


def check_gradient(array: _Checked, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> _Checked:
    """`dout`, `out` or `lse` of a backward call."""
    if array.dtype != dtype:
        raise DtypeError(
            f"{name} of type {array.dtype.name}", f"{dtype.name}", f"pass {name}.astype({dtype.name!r})"
        )
    if array.shape != shape:
        raise ShapeError(
            f"{name} with shape {array.shape}", f"shape {shape}", f"pass the {name} of the same call"
        )
    return array
