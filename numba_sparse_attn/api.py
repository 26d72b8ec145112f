"""What users call: check, choose, call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from . import arrays
from .errors import ArgumentError, ShapeError
from .normalisers import Normaliser
from .normalisers.description import check_normaliser
from .patterns.catalogue import CATALOGUE
from .patterns.convert import as_pattern
from .patterns.heads import HeadPatterns
from .patterns.pattern import Pattern
from .planner import Plan, gpu_views, make_plan
from .scores._change import as_changes

__all__ = [
    "create_sparse_mask",
    "get_sparse_indices",
    "plan",
    "sparse_attention",
    "sparse_attention_backward",
    "vjp",
]


def sparse_attention(
    q: Any,
    k: Any,
    v: Any,
    pattern: Any,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    engine: str = "auto",
    order: Any = "auto",
    out: npt.NDArray[Any] | None = None,
    scores: Any = None,
    normaliser: Normaliser | None = None,
) -> Any:
    """Exact attention over the selected pairs: ``softmax(scale * q k^T over the pairs) v``.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
    v : array (..., kv_heads, n_k, d_v) or (n_k, d_v)
        float16, bfloat16 (ml_dtypes), float32 or float64, all three the same; any strides. NumPy
        arrays, or arrays of PyTorch, CuPy, JAX or Numba in the memory of one GPU. `heads` is a multiple
        of `kv_heads`: query head h reads key head ``h // (heads // kv_heads)``.
    pattern
        Which query sees which key: a Pattern, HeadPatterns, a SciPy sparse array (its stored entries),
        a boolean mask, an index array ``(n_q, k)`` padded with -1, or one of those a head.
    scale : float, optional
        Factor on q k^T; ``1 / sqrt(d)`` if not given.
    return_lse : bool
        Also return the logarithm of each row's sum of exp(score).
    engine : {"auto", "cpu", "cuda-tile", "cuda-warp", "reference"}
        "auto" computes where the arrays are. An engine asked for by name runs the call or refuses it;
        it never hands it on.
    order : {"auto", "natural", None}, Order, or pair of permutations
        In which order tokens are computed; results are in yours. "auto" takes an order that the pattern
        declares if fewer tiles pay for moving the tokens, "natural" (or None) moves nothing; an order of
        your own is followed: see :mod:`numba_sparse_attn.orders`.
    out : array, optional
        Where to write the result.
    scores : change, or sequence of changes, optional
        What the scaled scores go through before the softmax: see :mod:`numba_sparse_attn.scores`.
    normaliser : Normaliser, optional
        What makes weights of scores in place of softmax: see :mod:`numba_sparse_attn.normalisers`.

    Returns
    -------
    out : array (..., heads, n_q, d_v)
        In the inputs' type. A query without keys gets zeros.
    lse : float32 (float64 for float64 inputs) (..., heads, n_q), if asked for
        -inf for a query without keys. Other normalisers have a number of their own in its place.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((1, 4, 8), np.float32)
    >>> v = np.arange(4, dtype=np.float32).reshape(1, 4, 1)
    >>> nsa.sparse_attention(q, k, v, nsa.patterns.causal(4))[0, :, 0].tolist()
    [0.0, 0.5, 1.0, 1.5]
    """
    made = _plan_for(q, k, v, pattern, scale, engine, order, scores, normaliser)
    return made(q, k, v, return_lse=return_lse, out=out)


def sparse_attention_backward(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    pattern: Any,
    *,
    scale: float | None = None,
    engine: str = "auto",
    order: Any = "auto",
    scores: Any = None,
    normaliser: Normaliser | None = None,
) -> tuple[Any, ...]:
    """Gradients of :func:`sparse_attention` with respect to q, k and v.

    Parameters
    ----------
    dout : array (..., heads, n_q, d_v)
        Gradient of a scalar with respect to `out`.
    q, k, v, pattern, scale, engine, order, scores, normaliser
        As in the forward call.
    out, lse : arrays
        What the forward call returned with ``return_lse=True``.

    Returns
    -------
    dq, dk, dv : arrays
        Shaped and typed like q, k and v. Gradients of grouped query heads are summed. The same bits
        every time, whatever the number of threads.
    dscores : tuple, only where a change in `scores` learns
        One item a change: the gradient of its parameters in their form, None for changes that do not learn.
    dalpha : array (heads,), float32 (float64 for float64 inputs)
        A fourth item, if the normaliser is :func:`~numba_sparse_attn.normalisers.entmax` of an array.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 2, 16, 8))
    >>> window = nsa.patterns.sliding_window(16, 3)
    >>> out, lse = nsa.sparse_attention(q, k, v, window, return_lse=True)
    >>> dq, dk, dv = nsa.sparse_attention_backward(np.ones_like(out), q, k, v, out, lse, window)
    >>> bool(np.allclose(dv.sum(), out.size))  # every row of weights sums to one
    True
    """
    made = _plan_for(q, k, v, pattern, scale, engine, order, scores, normaliser)
    return made.backward(dout, q, k, v, out, lse)


def vjp(
    q: Any,
    k: Any,
    v: Any,
    pattern: Any,
    *,
    scale: float | None = None,
    engine: str = "auto",
    order: Any = "auto",
    scores: Any = None,
    normaliser: Normaliser | None = None,
) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """Attention, and the function that takes gradients back through it: what an autodiff library needs.

    Parameters
    ----------
    q, k, v, pattern, scale, engine, order, scores, normaliser
        As in :func:`sparse_attention`. The arrays are kept, not copied: leave them and `out` as they are
        until the last use of `pullback`.

    Returns
    -------
    out : array (..., heads, n_q, d_v)
        As :func:`sparse_attention` returns it.
    pullback : callable
        ``pullback(dout)`` returns (dq, dk, dv), the gradients of ``sum(dout * out)``, as
        :func:`sparse_attention_backward` does, for any number of `dout`; with `scores` that learn, or an
        alpha that does, a fourth item as there.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> rng = np.random.default_rng(0)
    >>> q, k, v, dout = rng.standard_normal((4, 2, 16, 8))
    >>> out, pullback = nsa.vjp(q, k, v, nsa.patterns.causal(16))
    >>> dq, dk, dv = pullback(dout)
    >>> bool(np.isclose((dv * v).sum(), (dout * out).sum()))  # out is linear in v
    True
    """
    made = _plan_for(q, k, v, pattern, scale, engine, order, scores, normaliser)
    out, lse = made(q, k, v, return_lse=True)

    def pullback(dout: Any) -> tuple[Any, ...]:
        return made.backward(dout, q, k, v, out, lse)

    return out, pullback


def plan(
    pattern: Any,
    *,
    heads: int,
    head_dim: int,
    dtype: Any = "float32",
    kv_heads: int | None = None,
    value_dim: int | None = None,
    scale: float | None = None,
    engine: str = "auto",
    order: Any = "auto",
    device: str | None = None,
    scores: Any = None,
    normaliser: Normaliser | None = None,
) -> Plan:
    """Do once what every call with a pattern would do again: check, choose, build.

    Parameters
    ----------
    pattern
        As in :func:`sparse_attention`.
    heads, head_dim : int
    dtype : dtype or str
        Element type of q, k and v; "bfloat16" is understood.
    kv_heads, value_dim : int, optional
        As many as heads, and head_dim, if not given.
    scale : float, optional
    engine : str
    order
        As in :func:`sparse_attention`.
    device : {None, "cpu", "cuda", "cuda:1", ...}
        Where the arrays lie; None stands for the host, "cuda" for the first GPU.
    scores : change, or sequence of changes, optional
        As in :func:`sparse_attention`; with the numbers that they have now.
    normaliser : Normaliser, optional
        As in :func:`sparse_attention`.

    Returns
    -------
    Plan
        Call it with ``(q, k, v)``; ``explain()`` says what it will do and why.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> plan = nsa.plan(nsa.patterns.causal(32), heads=2, head_dim=16)
    >>> q, k, v = np.ones((3, 2, 32, 16), np.float32)
    >>> plan(q, k, v).shape
    (2, 32, 16)
    """
    gpu = _gpu_number(device)
    element = arrays.check_dtype(dtype)
    kv_heads = heads if kv_heads is None else kv_heads
    value_dim = head_dim if value_dim is None else value_dim
    for name, value in (
        ("heads", heads),
        ("kv_heads", kv_heads),
        ("head_dim", head_dim),
        ("value_dim", value_dim),
    ):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ArgumentError(f"{name}={value!r}", "a whole number of at least 1", f"correct {name}")
    if heads % kv_heads:
        raise ShapeError(
            f"{heads} query heads over {kv_heads} key heads", "heads a multiple of kv_heads", "correct either"
        )
    return make_plan(
        as_pattern(pattern),
        heads=int(heads),
        kv_heads=int(kv_heads),
        head_dim=int(head_dim),
        value_dim=int(value_dim),
        dtype=element,
        scale=arrays.check_scale(scale, int(head_dim)),
        engine=engine,
        gpu=gpu,
        order=order,
        scores=as_changes(scores, pattern),
        normaliser=check_normaliser(normaliser, int(heads)),
    )


def _gpu_number(device: Any) -> int | None:
    """The number of the GPU that a device name stands for; None for the host."""
    if device in (None, "cpu"):
        return None
    name, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if name != "cuda" or (number and not number.isdecimal()) or device.endswith(":"):
        raise ArgumentError(
            f"device={device!r}", "None, 'cpu', 'cuda' or 'cuda:' and a number", "say where the arrays lie"
        )
    return int(number or 0)


def create_sparse_mask(seq_len: int, pattern: str = "sliding_window", **kwargs: Any) -> npt.NDArray[np.bool_]:
    """The dense mask of a named pattern.

    Parameters
    ----------
    seq_len : int
    pattern : str
        Name of a function in :mod:`numba_sparse_attn.patterns`.
    **kwargs
        Its arguments, without the length.

    Returns
    -------
    bool (seq_len, seq_len)

    Examples
    --------
    >>> import numba_sparse_attn as nsa
    >>> int(nsa.create_sparse_mask(8, "sliding_window", window=1).sum())
    22
    """
    return _named(seq_len, pattern, kwargs).toarray()


def get_sparse_indices(seq_len: int, pattern: str = "sliding_window", **kwargs: Any) -> npt.NDArray[np.int64]:
    """The keys of every query of a named pattern, padded with -1.

    Parameters
    ----------
    seq_len, pattern, **kwargs
        As in :func:`create_sparse_mask`.

    Returns
    -------
    int64 (seq_len, k)
        k is the length of the longest row.

    Examples
    --------
    >>> import numba_sparse_attn as nsa
    >>> nsa.get_sparse_indices(3, "causal").tolist()
    [[0, -1, -1], [0, 1, -1], [0, 1, 2]]
    """
    return _named(seq_len, pattern, kwargs).toindices()


def _named(seq_len: int, name: str, kwargs: dict[str, Any]) -> Pattern:
    """A catalogue pattern by its name; those that are made from a length get it."""
    if name not in CATALOGUE:
        raise ArgumentError(f"pattern={name!r}", ", ".join(CATALOGUE), "use one of these names")
    build = CATALOGUE[name].build
    takes_length = next(iter(inspect.signature(build).parameters)) == "n"
    made = build(seq_len, **kwargs) if takes_length else build(**kwargs)
    if isinstance(made, HeadPatterns):
        raise ArgumentError(
            f"pattern={name!r}, which differs from head to head",
            "patterns that are the same for every head",
            "call the pattern function and convert each head",
        )
    if made.shape != (seq_len, seq_len):
        raise ArgumentError(
            f"seq_len={seq_len!r} and a {name} pattern of shape {made.shape}",
            "arguments that describe seq_len queries and keys",
            "correct seq_len or the pattern's arguments",
        )
    return made


def _plan_for(
    q: Any,
    k: Any,
    v: Any,
    pattern: Any,
    scale: float | None,
    engine: str,
    order: Any,
    scores: Any,
    normaliser: Normaliser | None,
) -> Plan:
    """A plan for one call's arrays, after checking them."""
    views = gpu_views(q, k, v)
    gpu = None if views is None else views[0].device
    if views is None:
        views = arrays.as_array(q, "q"), arrays.as_array(k, "k"), arrays.as_array(v, "v")
    found = arrays.check_arrays(*views)
    made = as_pattern(pattern, keys=found.n_k)
    if made.shape != (found.n_q, found.n_k):
        raise ShapeError(
            f"a pattern of shape {made.shape} for {found.n_q} queries and {found.n_k} keys",
            "a pattern of shape (n_q, n_k)",
            "build the pattern for these lengths",
        )
    return make_plan(
        made,
        heads=found.heads,
        kv_heads=found.kv_heads,
        head_dim=found.head_dim,
        value_dim=found.value_dim,
        dtype=found.dtype,
        scale=arrays.check_scale(scale, found.head_dim),
        engine=engine,
        gpu=gpu,
        order=order,
        scores=as_changes(scores, pattern),
        normaliser=check_normaliser(normaliser, found.heads),
    )
