"""Sparse attention as a function that JAX differentiates.

    python examples/jax_custom_vjp.py

Arrays on a GPU are used where they lie, outside of ``jax.jit``. Everywhere else, on the CPU and inside of
``jax.jit``, JAX calls back to the host through ``jax.pure_callback``, and the CPU engine computes: on a GPU
leave attention out of what is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import numba_sparse_attn as nsa


def sparse_attention(pattern: Any, **settings: Any) -> Callable[[Any, Any, Any], Any]:
    """``attention(q, k, v)`` over a pattern, for ``jax.grad``, ``jax.vjp``, ``jax.jit`` and ``jax.vmap``."""
    run_forward = functools.partial(nsa.sparse_attention, pattern=pattern, return_lse=True, **settings)
    run_backward = functools.partial(nsa.sparse_attention_backward, pattern=pattern, **settings)

    @jax.custom_vjp
    def attention(q: Any, k: Any, v: Any) -> Any:
        return forward(q, k, v)[0]

    def forward(q: Any, k: Any, v: Any) -> tuple[Any, tuple[Any, ...]]:
        sums = np.float64 if q.dtype == np.float64 else np.float32
        like = (
            jax.ShapeDtypeStruct((*q.shape[:-1], v.shape[-1]), q.dtype),
            jax.ShapeDtypeStruct(q.shape[:-1], sums),
        )
        out, lse = _call(run_forward, like, q, k, v)
        return out, (q, k, v, out, lse)

    def backward(kept: tuple[Any, ...], dout: Any) -> tuple[Any, ...]:
        return _call(run_backward, kept[:3], dout, *kept)

    attention.defvjp(forward, backward)
    return attention


def _call(function: Callable[..., Any], like: tuple[Any, ...], *arrays: Any) -> tuple[Any, ...]:
    """The function's results, which have the shapes and types of `like`."""
    if all(_on_gpu(array) for array in arrays):
        return tuple(function(*arrays))
    like = tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in like)
    return tuple(
        jax.pure_callback(
            lambda *values: tuple(function(*map(np.asarray, values))),
            like,
            *arrays,
            vmap_method="broadcast_all",
        )
    )


def _on_gpu(array: Any) -> bool:
    """Whether it has memory there; what ``jax.jit`` passes to a function that it compiles has none."""
    has_memory = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
    return has_memory and all(device.platform == "gpu" for device in array.devices())


def main() -> None:
    """Fit queries to a target through attention over a causal window."""
    heads, n, d = 2, 128, 16
    attention = sparse_attention(nsa.patterns.sliding_window(n, 16, causal=True))
    q, k, v, target = jax.random.normal(jax.random.key(0), (4, heads, n, d))
    gradient = jax.value_and_grad(lambda q: ((attention(q, k, v) - target) ** 2).mean())
    for step in range(50):
        loss, slope = gradient(q)
        q = q - 100.0 * slope
        if step % 10 == 0:
            print(f"step {step:2}: loss {loss:.4f}")


if __name__ == "__main__":
    main()
