"""Linformer: attention over a few mixtures of the keys instead of the keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..api import sparse_attention, sparse_attention_backward
from ..errors import ShapeError
from ..patterns import full
from ._arrays import check_shapes, library_of, narrow, scale_of, summed_to, widen

__all__ = ["linformer", "linformer_projection", "linformer_vjp"]


def linformer_projection(
    n_keys: int, rank: int, *, heads: int | None = None, seed: int = 0
) -> npt.NDArray[np.float32]:
    """A random mixing matrix to begin training with, or to use as it is: normal, of variance 1 / rank.

    Parameters
    ----------
    n_keys, rank : int
        Keys, and how many mixtures of them are made.
    heads : int, optional
        One matrix for each of so many key heads instead of one for all.
    seed : int

    Returns
    -------
    float32 (rank, n_keys) or (heads, rank, n_keys)

    Examples
    --------
    >>> linformer_projection(1024, 64).shape
    (64, 1024)
    """
    shape = (rank, n_keys) if heads is None else (heads, rank, n_keys)
    matrix = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return matrix / np.float32(np.sqrt(max(rank, 1)))


def linformer(q: Any, k: Any, v: Any, key_mix: Any, value_mix: Any, *, scale: float | None = None) -> Any:
    """``softmax(scale * q (E k)^T) (F v)`` for mixing matrices E and F: linear in the length.

    It does not know the order of time: every mixture has keys of the whole sequence in it, so there is no
    causal form.

    Parameters
    ----------
    q : array (..., heads, n_q, d)
    k : array (..., kv_heads, n_k, d)
    v : array (..., kv_heads, n_k, d_v)
        Of NumPy, CuPy, PyTorch or JAX.
    key_mix, value_mix : array (rank, n_k) or (kv_heads, rank, n_k)
        E and F, in the type of the others; one matrix may serve as both.
    scale : float, optional
        ``1 / sqrt(d)`` if not given.

    Returns
    -------
    array (..., heads, n_q, d_v)

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 512, 32)).astype(np.float32)
    >>> mix = linformer_projection(512, 64)
    >>> linformer(q, k, v, mix, mix).shape
    (2, 512, 32)
    """
    mixed_k, mixed_v = _mixed(q, k, v, key_mix, value_mix)
    pattern = full(q.shape[-2], n_keys=mixed_k.shape[-2])
    return sparse_attention(q, mixed_k, mixed_v, pattern, scale=scale_of(scale, q.shape[-1]))


def linformer_vjp(
    q: Any, k: Any, v: Any, key_mix: Any, value_mix: Any, *, scale: float | None = None
) -> tuple[Any, Callable[[Any], tuple[Any, Any, Any, Any, Any]]]:
    """:func:`linformer` and its pullback: from dout to (dq, dk, dv, dkey_mix, dvalue_mix).

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 256, 32)).astype(np.float32)
    >>> mix = linformer_projection(256, 32)
    >>> out, pullback = linformer_vjp(q, k, v, mix, mix)
    >>> [gradient.shape for gradient in pullback(np.ones_like(out))]
    [(2, 256, 32), (2, 256, 32), (2, 256, 32), (32, 256), (32, 256)]
    """
    mixed_k, mixed_v = _mixed(q, k, v, key_mix, value_mix)
    pattern = full(q.shape[-2], n_keys=mixed_k.shape[-2])
    factor = scale_of(scale, q.shape[-1])
    out, lse = sparse_attention(q, mixed_k, mixed_v, pattern, scale=factor, return_lse=True)

    def pullback(dout: Any) -> tuple[Any, Any, Any, Any, Any]:
        dq, *mixed = sparse_attention_backward(dout, q, mixed_k, mixed_v, out, lse, pattern, scale=factor)
        gradients, mixes = [], []
        for array, mix, gradient in ((k, key_mix, mixed[0]), (v, value_mix, mixed[1])):
            wide_array, wide_mix, wide = widen(array, mix, gradient)
            library = library_of(array)
            gradients.append(narrow(library.swapaxes(wide_mix, -1, -2) @ wide, array))
            by_head = wide @ library.swapaxes(wide_array, -1, -2)
            mixes.append(narrow(_summed_over_batch(by_head, mix), mix))
        return dq, gradients[0], gradients[1], mixes[0], mixes[1]

    return out, pullback


def _mixed(q: Any, k: Any, v: Any, key_mix: Any, value_mix: Any) -> tuple[Any, Any]:
    check_shapes(q, k, v)
    kv_heads, n_k = k.shape[-3], k.shape[-2]
    for mix in (key_mix, value_mix):
        shape = tuple(mix.shape)
        if (
            len(shape) not in (2, 3)
            or shape[-1] != n_k
            or (len(shape) == 3 and shape[0] not in (1, kv_heads))
        ):
            raise ShapeError(
                f"a mixing matrix of shape {shape} for {kv_heads} key heads and {n_k} keys",
                f"(rank, {n_k}) or ({kv_heads}, rank, {n_k})",
                "give one matrix for all heads or one a head",
            )
    if key_mix.shape[-2] != value_mix.shape[-2]:
        raise ShapeError(
            f"{key_mix.shape[-2]} mixtures of keys and {value_mix.shape[-2]} of values",
            "as many of both",
            "give matrices with the same number of rows",
        )
    *_, wide_k, wide_v, wide_key_mix, wide_value_mix = widen(q, k, v, key_mix, value_mix)
    return narrow(wide_key_mix @ wide_k, k), narrow(wide_value_mix @ wide_v, v)


def _summed_over_batch(by_head: Any, mix: Any) -> Any:
    """From (..., kv_heads, rank, n_k) to the shape of the matrix."""
    shape = tuple(mix.shape)
    padded = shape if len(shape) == 3 else (1, *shape)
    return summed_to(by_head, padded).reshape(shape)
