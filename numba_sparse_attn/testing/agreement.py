"""Running an engine on a problem under hard conditions, ready to be compared with the oracle.

Inputs and outputs lie in the middle of NaN, outputs start as NaN, rows that take part in no pair are NaN.
Everything runs twice, the second time with NaN in all new arrays, and has to give the same bits. Nothing
but the outputs may have been written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ..api import sparse_attention, sparse_attention_backward
from ..formats.work import Request, Structure
from ..normalisers import Normaliser
from .poison import assert_margins_untouched, nan_filled, poisoned, surrounded
from .problems import Problem

__all__ = ["dirty_memory", "request_for", "run_call", "run_engine"]

_Array = npt.NDArray[Any]
_MakeOutput = Callable[[tuple[int, ...], npt.DTypeLike], _Array]
Results = dict[str, _Array]


def run_call(
    problem: Problem,
    pattern: Any,
    *,
    engine: str = "auto",
    order: Any = "auto",
    poison: float = np.nan,
    scores: Any = None,
    normaliser: Normaliser | None = None,
) -> Results:
    """Forward and backward through the public functions: "out", "lse", "dq", "dk" and "dv" by name.

    What the backward pass returns for `scores` is there as "dscores0", "dscores1" and so on, as numbers;
    those of a list stand one behind the other. "dalpha" is there where alpha is learned.

    Parameters
    ----------
    problem : Problem
        Its mask says which pairs `pattern` selects.
    pattern
        Whatever :func:`numba_sparse_attn.sparse_attention` takes.
    engine, order
        As for that function.
    poison : float
        What lies in rows that take part in no pair.
    scores : changes of scores
        The ones whose twins the problem has, if it has any.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_sparse_attn import patterns
    >>> from numba_sparse_attn.testing import budget_for, random_problem
    >>> pattern = patterns.causal(20)
    >>> problem = random_problem(pattern.toarray(), heads=2, head_dim=8)
    >>> budget_for(problem).check(**run_call(problem, pattern, engine="reference"))
    """

    def call(q: _Array, k: _Array, v: _Array, dout: _Array, output: _MakeOutput) -> Results:
        settings: dict[str, Any] = {
            "scale": problem.scale,
            "engine": engine,
            "order": order,
            "scores": scores,
            "normaliser": normaliser,
        }
        out = output((*q.shape[:-1], v.shape[-1]), problem.dtype)
        out, lse = sparse_attention(q, k, v, pattern, return_lse=True, out=out, **settings)
        dq, dk, dv, *learnt = sparse_attention_backward(dout, q, k, v, out, lse, pattern, **settings)
        found = {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
        if normaliser is not None and learnt:
            return found | {"dalpha": learnt[0]}
        for number, gradient in enumerate(learnt[0] if learnt else ()):
            if gradient is not None:
                parts = gradient if isinstance(gradient, list) else [gradient]
                numbers = [part.data if sparse.issparse(part) else part for part in parts]
                found[f"dscores{number}"] = np.concatenate(numbers) if numbers[1:] else numbers[0]
        return found

    return _run_twice(problem, poison, call)


def run_engine(
    engine: Any, problem: Problem, structures: Structure | Sequence[Structure], *, poison: float = np.nan
) -> Results:
    """Forward and backward through an engine's own functions, on given tiles or rows.

    Parameters
    ----------
    engine : module
        With ``forward``, ``backward`` and ``why_not``.
    problem : Problem
        With a heads axis.
    structures : Tiles or Csr, or one of them a head
    poison : float
        What lies in rows that take part in no pair.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_sparse_attn import cpu, patterns
    >>> from numba_sparse_attn.testing import budget_for, random_problem
    >>> pattern = patterns.causal(20)
    >>> problem = random_problem(pattern.toarray(), heads=2, head_dim=8)
    >>> budget_for(problem).check(**run_engine(cpu, problem, [pattern.tiles(), pattern.rows()]))
    """
    request = request_for(problem, structures)
    refusals = engine.why_not(request)
    if refusals:
        raise AssertionError(f"the engine declines: {'; '.join(refusals)}")

    def call(q: _Array, k: _Array, v: _Array, dout: _Array, output: _MakeOutput) -> Results:
        out = output((*q.shape[:-1], v.shape[-1]), problem.dtype)
        lse = output(q.shape[:-1], problem.accumulator)
        dq, dk, dv = (output(array.shape, problem.dtype) for array in (q, k, v))
        engine.forward(request, q, k, v, out, lse)
        engine.backward(request, dout, q, k, v, out, lse, dq, dk, dv)
        return {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}

    return _run_twice(problem, poison, call)


def request_for(
    problem: Problem,
    structures: Structure | Sequence[Structure],
    normaliser: Normaliser | None = None,
) -> Request:
    """What an engine is told about a problem beside its arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_sparse_attn import patterns
    >>> from numba_sparse_attn.testing import random_problem
    >>> problem = random_problem(np.ones((4, 4), bool), heads=2, head_dim=8, batch=(3,))
    >>> request_for(problem, patterns.full(4).rows()).which.shape
    (3, 2)
    """
    heads, n_q, head_dim = problem.q.shape[-3:]
    distinct = tuple(structures) if isinstance(structures, Sequence) else (structures,)
    member = np.arange(heads) if len(distinct) > 1 else np.zeros(heads)
    return Request(
        structures=distinct,
        which=np.tile(member.astype(np.int32), (math.prod(problem.q.shape[:-3]), 1)),
        heads=heads,
        kv_heads=problem.k.shape[-3],
        n_q=n_q,
        n_k=problem.k.shape[-2],
        head_dim=head_dim,
        value_dim=problem.v.shape[-1],
        dtype=problem.dtype,
        scale=problem.scale,
        normaliser=normaliser,
    )


@contextmanager
def dirty_memory() -> Iterator[None]:
    """Inside, ``numpy.empty`` and ``numpy.empty_like`` give NaN, or for integers a large number.

    What real memory holds is chance, and in a test usually zeros. Nothing may be compiled inside: Numba
    looks up ``numpy.empty`` by name.

    Examples
    --------
    >>> import numpy as np
    >>> with dirty_memory():
    ...     np.empty(2).tolist(), np.empty(1, np.int32).tolist()
    ([nan, nan], [2147483647])
    """
    empty, empty_like = np.empty, np.empty_like

    def spoiled(make: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            array = make(*args, **kwargs)
            if array.dtype.kind in "iu":
                array.fill(np.iinfo(array.dtype).max)
            elif array.dtype.kind in "fV" and array.dtype.names is None:
                array.fill(np.nan)
            return array

        return call

    with (
        mock.patch.object(np, "empty", spoiled(empty)),
        mock.patch.object(np, "empty_like", spoiled(empty_like)),
    ):
        yield


def _run_twice(problem: Problem, poison: float, call: Callable[..., Results]) -> Results:
    """Results of ``call(q, k, v, dout, output)``, first in clean and then in dirty memory.

    ``output(shape, dtype)`` makes the arrays that `call` writes to.
    """
    dirty = poisoned(problem, poison)
    # Unusual strides are a part of the problem: only arrays in C order move into a buffer of their own.
    inputs = [surrounded(array) if array.flags.c_contiguous else array for array in dirty.arrays]
    before = [array.tobytes() for array in inputs]
    outputs = []

    def output(shape: tuple[int, ...], dtype: npt.DTypeLike) -> _Array:
        outputs.append(surrounded(nan_filled(shape, dtype)))
        return outputs[-1]

    results = call(*inputs, output)  # compiles what has to be compiled
    with dirty_memory():
        again = call(*inputs, output)
    for name, array in results.items():
        if array.tobytes() != again[name].tobytes():
            raise AssertionError(f"{name} depends on what new memory holds, or differs from call to call")
    for array in outputs:
        assert_margins_untouched(array)
    for name, array, bits in zip(("q", "k", "v", "dout"), inputs, before, strict=True):
        if array.tobytes() != bits:
            raise AssertionError(f"{name} was written to")
    return results
