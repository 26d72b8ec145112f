"""JAX's dot_product_attention, compiled: by XLA with a dense mask, on the host or a GPU, and by cuDNN.

cuDNN takes dense and causal attention and windows, which are the forms of JAX's own arguments; only patterns
that are one of these are given to it. JAX runs in streams of its own and keeps its own memory, so its calls
are waited for and its memory is not counted.

Its splash attention, which is sparse, is written for TPUs: there is none here to measure it on.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np

from numba_sparse_attn import config

from ..workload import Workload
from . import Prepared

__all__ = ["Cudnn", "Xla"]

#: Bytes of the float32 scores of all heads, of which XLA stores a few copies: on the host, on a GPU.
MOST_SCORE_BYTES = {False: 2 << 30, True: 8 << 30}


def _jax() -> Any:
    """The module; by default it would take three quarters of a GPU's memory with its first array."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return importlib.import_module("jax")


def _gpus() -> list[Any]:
    try:
        found: list[Any] = _jax().devices("gpu")
    except RuntimeError:  # JAX's word for a back end that is not installed
        return []
    return found


def _cores() -> int:
    """Cores that this process may use, on each of which XLA starts a thread."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _DotProduct:
    """What both have in common: JAX's layout, its compiler, its derivatives."""

    name: ClassVar[str]
    implementation: ClassVar[str]

    def why_absent(self) -> str:
        """JAX has to be installed."""
        return "" if importlib.util.find_spec("jax") else "JAX is not installed (pip install jax)"

    def version(self) -> dict[str, str]:
        """JAX and its XLA."""
        return {"jax": version("jax"), "jaxlib": version("jaxlib")}

    def options(self, workload: Workload) -> dict[str, Any]:
        """How the pattern is said."""
        raise NotImplementedError

    def prepare(self, workload: Workload) -> Prepared:
        """Arrays in JAX's layout, a compilation, the first call."""
        jax = _jax()
        device = _gpus()[0] if workload.place.gpu and _gpus() else jax.devices("cpu")[0]
        hand_over = partial(_handed_over, jax, device)
        q, k, v, dout = (hand_over(array) for array in (workload.q, workload.k, workload.v, workload.dout))
        start = time.perf_counter()
        options = self.options(workload)
        arrays = {name: jax.device_put(value, device) for name, value in options.items() if name == "mask"}
        fixed = {name: value for name, value in options.items() if name not in arrays}
        made = time.perf_counter()

        def attention(q: Any, k: Any, v: Any, given: Any) -> Any:
            # By default a GPU would multiply float32 with ten bits of mantissa.
            with jax.default_matmul_precision("highest" if workload.dtype == np.float32 else "default"):
                return jax.nn.dot_product_attention(
                    q, k, v, scale=workload.scale, implementation=self.implementation, **fixed, **given
                )

        def pulled(q: Any, k: Any, v: Any, given: Any) -> Any:
            return jax.vjp(partial(attention, given=given), q, k, v)

        forward = jax.jit(attention)
        with_residuals = jax.jit(pulled)
        pull_back = jax.jit(lambda pull, dout: pull(dout))

        def both(q: Any, k: Any, v: Any, given: Any, dout: Any) -> Any:
            out, pull = pulled(q, k, v, given)
            return (out, *pull(dout))

        training = jax.jit(both)
        last: list[Any] = []

        pull = None if workload.direction != "backward" else with_residuals(q, k, v, arrays)[1]
        passes: dict[str, Callable[[], Any]] = {
            "forward": lambda: forward(q, k, v, arrays),
            "backward": lambda: pull_back(pull, dout),
            "training": lambda: training(q, k, v, arrays, dout),
        }
        chosen = passes[workload.direction]

        def bare() -> None:
            last[:] = [chosen()]

        prepared = Prepared(
            forward=lambda: _delivered(forward(q, k, v, arrays), workload.q),
            backward=lambda dout: _all_delivered(pull_back(pull, hand_over(dout)), workload.q),
            training=lambda dout: _all_delivered(training(q, k, v, arrays, hand_over(dout)), workload.q),
            bare=bare,
            wait=lambda: jax.block_until_ready(last),
            memory_counted=not workload.place.gpu,
        )
        jax.block_until_ready(chosen())
        setup = {"mask_seconds": made - start} if arrays else {}
        prepared.setup = {**setup, "compile_seconds": time.perf_counter() - made}
        return prepared


def _handed_over(jax: Any, device: Any, array: Any) -> Any:
    """From ``(heads, n, d)`` to ``(1, n, heads, d)``."""
    if isinstance(array, np.ndarray):
        array = jax.device_put(array, device)
    else:
        array = jax.dlpack.from_dlpack(array.contiguous() if hasattr(array, "contiguous") else array)
    return jax.block_until_ready(jax.numpy.transpose(array, (1, 0, 2))[None])


def _delivered(array: Any, like: Any) -> Any:
    """Back to ``(heads, n, d)``, as an array of the library of `like`."""
    jax = _jax()
    array = jax.block_until_ready(jax.numpy.transpose(array[0], (1, 0, 2)))
    if isinstance(like, np.ndarray):
        return np.asarray(array)
    library = importlib.import_module(type(like).__module__.partition(".")[0])
    return library.from_dlpack(array)


def _all_delivered(arrays: Any, like: Any) -> Any:
    return tuple(_delivered(array, like) for array in arrays)


class Xla(_DotProduct):
    """Scores, softmax and product as XLA fuses them, with a dense mask: all pairs are computed."""

    name, implementation = "jax_xla", "xla"

    def why_not(self, workload: Workload) -> str:
        """What it takes, and what fits."""
        if workload.dtype == np.float64:
            return "JAX computes in float64 only where a whole process does"
        if workload.place.gpu:
            if not isinstance(workload.q, np.ndarray) and not _gpus():
                return "the installed JAX reaches no GPU"
            if not hasattr(workload.q, "__dlpack__"):
                return "takes arrays by DLPack, which those of Numba lack"
        elif workload.dtype == np.float16:
            return "XLA multiplies no float16 on a CPU"
        elif config.thread_count() != _cores():
            return f"uses all {_cores()} cores, and our engine is told to use {config.thread_count()}"
        n_q, n_k = workload.pattern.shape
        if workload.heads * n_q * n_k * 4 > (most := MOST_SCORE_BYTES[workload.place.gpu]):
            return f"stores the scores of all pairs; measured up to {most / 2**30:.0f} GiB of them"
        return ""

    def options(self, workload: Workload) -> dict[str, Any]:
        """The mask, ``(1, heads, n_q, n_k)``; nothing where the pattern is full."""
        return {} if workload.spec.function == "full" else {"mask": workload.masks[None]}


class Cudnn(_DotProduct):
    """cuDNN's fused attention as JAX calls it."""

    name, implementation = "jax_cudnn", "cudnn"

    def why_absent(self) -> str:
        """JAX with a GPU."""
        return super().why_absent() or ("" if _gpus() else "the installed JAX reaches no GPU")

    def why_not(self, workload: Workload) -> str:
        """Its forms and its element types."""
        if workload.dtype.name not in {"float16", "bfloat16"}:
            return "takes float16 and bfloat16 only"
        if not hasattr(workload.q, "__dlpack__"):
            return "takes arrays by DLPack, which those of Numba lack"
        return "" if _form(workload) is not None else "knows dense and causal attention and windows only"

    def options(self, workload: Workload) -> dict[str, Any]:
        """The pattern as one of its forms."""
        form = _form(workload)
        assert form is not None
        return form


def _form(workload: Workload) -> dict[str, Any] | None:
    """JAX's own arguments for a pattern; None if it is neither dense nor causal nor a window."""
    arguments = workload.spec.arguments
    square = workload.pattern.shape[0] == workload.pattern.shape[1]
    if workload.spec.function == "full":
        return {}
    if workload.spec.function == "causal" and square:
        return {"is_causal": True}
    if workload.spec.function == "sliding_window" and square:
        window = arguments["window"]
        causal = bool(arguments.get("causal", False))
        return {"local_window_size": (window, 0 if causal else window), "is_causal": causal}
    return None
