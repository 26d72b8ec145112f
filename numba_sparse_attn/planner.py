"""Which engine runs a call, on which path, and why.

A plan is made once for a pattern and a kind of call (heads, head dimensions, element type) and then
runs on any arrays of that kind, with any batch axes. It holds what was built for it: tiles or rows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from . import arrays, config
from .choices import Choice, Kind, choose_cpu, choose_dense, choose_gpu, predict_gpu
from .errors import EngineError, ShapeError
from .formats.csr import Csr
from .formats.tiles import TILE
from .formats.work import Request
from .normalisers import Entmax, Normaliser, Sigmoid
from .patterns.heads import HeadPatterns
from .patterns.pattern import Pattern

__all__ = ["ENGINES", "Plan", "gpu_views", "make_plan", "rule_of"]

#: Engines of this version. "auto" stands for the one that should be fastest of those that can run the call.
ENGINES = ("cpu", "cuda-tile", "cuda-warp", "reference")

#: Sizes of batches whose requests a plan remembers.
_REQUESTS_KEPT = 64

#: Plans that a pattern keeps.
_PLANS_KEPT = 32
#: Largest mask that the reference engine builds, in bytes.
_REFERENCE_LIMIT = 1 << 31


@dataclass(frozen=True, eq=False)
class Plan:
    """A pattern made ready for one kind of call. Made by :func:`numba_sparse_attn.plan`.

    Attributes
    ----------
    engine : str
    pattern : Pattern or HeadPatterns
    heads, kv_heads, head_dim, value_dim, dtype, scale, normaliser
        The kind of call that it was made for.
    """

    engine: str
    pattern: Pattern | HeadPatterns
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: np.dtype[Any]
    scale: float
    _index: npt.NDArray[np.int32]
    _choices: tuple[Choice, ...]
    _reason: str
    normaliser: Normaliser | None = None
    _requests: dict[arrays.Dimensions, Request] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what engines remember, which is of use on this machine and in this process only."""
        return {**self.__dict__, "_requests": {}}

    def __call__(
        self, q: Any, k: Any, v: Any, *, return_lse: bool = False, out: npt.NDArray[Any] | None = None
    ) -> Any:
        """Attention over the plan's pairs; arguments as in :func:`numba_sparse_attn.sparse_attention`."""
        if self.engine.startswith("cuda"):
            from .cuda import calls

            return calls.forward(self._module, self._request, q, k, v, return_lse=return_lse, out=out)
        q, k, v = arrays.as_array(q, "q"), arrays.as_array(k, "k"), arrays.as_array(v, "v")
        dimensions = arrays.check_arrays(q, k, v)
        request = self._request(dimensions)
        out = arrays.output_array(out, (*q.shape[:-1], v.shape[-1]), q.dtype, (q, k, v))
        lse = np.empty(q.shape[:-1], request.accumulator) if return_lse else None
        flat = dimensions.flat
        views = [arrays.with_heads_axis(array, flat) for array in (q, k, v, out)]
        if out.size or (lse is not None and lse.size):
            self._module.forward(request, *views, None if lse is None else arrays.with_heads_axis(lse, flat))
        return (out, lse) if return_lse else out

    def backward(self, dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any) -> tuple[npt.NDArray[Any], ...]:
        """Gradients (dq, dk, dv), and that of a normaliser's parameter if it has one to be learned.

        Arguments as in :func:`numba_sparse_attn.sparse_attention_backward`.
        """
        if self.engine.startswith("cuda"):
            from .cuda import calls

            return calls.backward(self._module, self._request, dout, q, k, v, out, lse)
        q, k, v = arrays.as_array(q, "q"), arrays.as_array(k, "k"), arrays.as_array(v, "v")
        dimensions = arrays.check_arrays(q, k, v)
        request = self._request(dimensions)
        shape = (*q.shape[:-1], v.shape[-1])
        dout = arrays.check_gradient(arrays.as_array(dout, "dout"), shape, q.dtype, "dout")
        out = arrays.check_gradient(arrays.as_array(out, "out"), shape, q.dtype, "out")
        lse = arrays.check_gradient(arrays.as_array(lse, "lse"), q.shape[:-1], request.accumulator, "lse")
        dq, dk, dv = (np.empty(array.shape, array.dtype) for array in (q, k, v))
        views = [
            arrays.with_heads_axis(array, dimensions.flat) for array in (dout, q, k, v, out, lse, dq, dk, dv)
        ]
        dalpha = np.zeros(self.heads, request.accumulator) if self._is_learned else None
        if request.batch:
            self._module.backward(request, *views, *(() if dalpha is None else (dalpha,)))
        return (dq, dk, dv) if dalpha is None else (dq, dk, dv, dalpha)

    def explain(self) -> str:
        """What will run, what it costs and why, in words and numbers.

        Examples
        --------
        >>> import numba_sparse_attn as nsa
        >>> plan = nsa.plan(nsa.patterns.sliding_window(4096, 256), heads=4, head_dim=64)
        >>> print(plan.explain().splitlines()[0])
        engine cpu: the CPU engine is the fastest engine on this machine that can run this call
        """
        n_q, n_k = self.pattern.shape
        kind = (
            f"{self.heads} heads over {self.kv_heads}, head dim {self.head_dim}, value dim {self.value_dim}"
        )
        lines = [
            f"engine {self.engine}: {self._reason}",
            f"call: {n_q} queries x {n_k} keys, {kind}, {self.dtype.name}, scale {self.scale:.6g}",
        ]
        if self.normaliser is not None:
            lines.append(f"normaliser {self.normaliser.name}")
        uses = np.bincount(self._index.reshape(-1), minlength=len(self._choices))
        members = (self.pattern,) if isinstance(self.pattern, Pattern) else self.pattern.members
        for member, choice, count in zip(members, self._choices, uses, strict=True):
            size = n_q * n_k
            density = choice.census.nnz / size if size else 0.0
            lines.append(
                f"pattern {member.name} ({count} heads): {choice.census.nnz} pairs a head, "
                f"{1 - density:.2%} sparse"
            )
            lines += [f"  {line}" for line in choice.lines]
        if self.engine == "cuda-tile":
            # Two float32 a query, for whole tiles of queries.
            workspace = 8 * self.heads * -(-n_q // TILE) * TILE
            lines.append(f"gradients: in two sweeps, with a workspace of {workspace} bytes a batch element")
        return "\n".join(lines)

    @property
    def nbytes(self) -> int:
        """Memory that the plan's tiles and rows take."""
        return sum(choice.structure.nbytes for choice in self._choices)

    @property
    def _is_learned(self) -> bool:
        """Whether the backward pass returns a fourth gradient."""
        return self.normaliser is not None and self.normaliser.learnable

    @property
    def _module(self) -> Any:
        return _engine(self.engine)

    def _request(self, dimensions: arrays.Dimensions) -> Request:
        """The engine's view of a call: the same object for equal dimensions, since engines keep things in it.

        Threads may share a plan: every step on the dictionary is atomic, and whoever comes second gets what
        the first has made.
        """
        request = self._requests.get(dimensions)
        if request is None:
            made = self._make_request(dimensions)
            if len(self._requests) >= _REQUESTS_KEPT:
                self._requests.clear()
            request = self._requests.setdefault(dimensions, made)
        return request

    def _make_request(self, dimensions: arrays.Dimensions) -> Request:
        """A request, after checking that the arrays are of the planned kind."""
        planned = (
            *self.pattern.shape,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.value_dim,
            self.dtype.name,
        )
        found = (
            dimensions.n_q,
            dimensions.n_k,
            dimensions.heads,
            dimensions.kv_heads,
            dimensions.head_dim,
            dimensions.value_dim,
            dimensions.dtype.name,
        )
        if planned != found:
            names = ("queries", "keys", "heads", "kv_heads", "head_dim", "value_dim", "dtype")
            wrong = [
                f"{name} {have} (the pattern and plan have {want})"
                for name, have, want in zip(names, found, planned, strict=True)
                if have != want
            ]
            raise ShapeError(
                ", ".join(wrong), "arrays that the pattern and plan were made for", "make a plan for them"
            )
        which = _which(self._index, dimensions.lead, dimensions.heads)
        return Request(
            structures=tuple(choice.structure for choice in self._choices),
            which=which,
            heads=self.heads,
            kv_heads=self.kv_heads,
            n_q=dimensions.n_q,
            n_k=dimensions.n_k,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            dtype=self.dtype,
            scale=self.scale,
            normaliser=self.normaliser,
        )


def make_plan(
    pattern: Pattern | HeadPatterns,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int,
    dtype: np.dtype[Any],
    scale: float,
    engine: str,
    gpu: int | None,
    normaliser: Normaliser | None = None,
) -> Plan:
    """Choose an engine and, for every distinct pattern, a path; build what they need.

    `gpu` is the number of the GPU that the arrays lie on. A plan is kept with its pattern: asked for again,
    it costs nothing.
    """
    asked = config.default_engine() if engine == "auto" else engine
    kind = heads, kv_heads, head_dim, value_dim, dtype, scale, engine, asked, gpu, normaliser
    plan: Plan | None = pattern.memo.get(kind)
    if plan is None:
        plan = _new_plan(pattern, heads, kv_heads, head_dim, value_dim, dtype, scale, engine, gpu, normaliser)
        if len(pattern.memo) >= _PLANS_KEPT:
            pattern.memo.clear()
        pattern.memo[kind] = plan
    return plan


def _new_plan(
    pattern: Pattern | HeadPatterns,
    heads: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int,
    dtype: np.dtype[Any],
    scale: float,
    engine: str,
    gpu: int | None,
    normaliser: Normaliser | None,
) -> Plan:
    if isinstance(pattern, Pattern):
        members: tuple[Pattern, ...] = (pattern,)
        index = np.zeros(heads, np.int32)
    else:
        members = pattern.members
        index = pattern.member_of
        _which(index, index.shape[:-1], heads)
    uses = np.bincount(index.reshape(-1), minlength=len(members))
    by_rows = normaliser.name if normaliser is not None and normaliser.needs_rows else None
    kinds = [Kind(int(count), head_dim, value_dim, dtype, by_rows) for count in uses]
    name, reason = _choose_engine(engine, gpu, members, kinds, normaliser)
    pairs = zip(members, kinds, strict=True)
    if name in ("cuda-tile", "cuda-warp"):
        path = name.removeprefix("cuda-")
        choices = tuple(
            choose_gpu(member, kind, "tiles" if path == "tile" else "rows") for member, kind in pairs
        )
    elif name == "reference":
        choices = tuple(choose_dense(member) for member in members)
    else:
        choices = tuple(choose_cpu(member, kind) for member, kind in pairs)
    kind = heads, kv_heads, head_dim, value_dim, dtype, scale
    plan = Plan(name, pattern, *kind, index, choices, reason, normaliser)
    n_q, n_k = pattern.shape
    dimensions = arrays.Dimensions(
        index.shape[:-1], heads, kv_heads, n_q, n_k, head_dim, value_dim, dtype, False
    )
    refusals = plan._module.why_not(plan._make_request(dimensions))
    if refusals:
        raise EngineError(
            f"engine {name!r} asked for a call it cannot run", "; ".join(refusals), "use engine='auto'"
        )
    return plan


def _which(index: npt.NDArray[np.int32], lead: tuple[int, ...], heads: int) -> npt.NDArray[np.int32]:
    """``int32 [batch, heads]`` from the patterns' index, broadcast over the axes before heads."""
    try:
        full = np.broadcast_to(index, (*lead, heads))
    except ValueError:
        raise ShapeError(
            f"patterns for axes {index.shape} and arrays with axes {(*lead, heads)} before (n, d)",
            "one pattern for all, one a head, or one a head and batch element",
            "give as many patterns as there are query heads",
        ) from None
    return np.ascontiguousarray(full.reshape(-1, heads))


def _choose_engine(
    engine: str,
    gpu: int | None,
    members: tuple[Pattern, ...],
    kinds: list[Kind],
    normaliser: Normaliser | None,
) -> tuple[str, str]:
    """Name of the engine and the reason in words."""
    asked = config.default_engine() if engine == "auto" else engine
    if asked == "auto":
        if gpu is not None:
            return _choose_gpu_engine(gpu, members, kinds, normaliser)
        return "cpu", "the CPU engine is the fastest engine on this machine that can run this call"
    if asked not in ENGINES:
        raise EngineError(
            f"engine {asked!r}",
            f"'auto' and {', '.join(map(repr, ENGINES))}",
            "correct the name (or NSA_ENGINE)",
        )
    if asked.startswith("cuda"):
        from .cuda.calls import why_unavailable

        reason = why_unavailable(asked, gpu or 0)
        if reason is not None:
            advice = "use engine='cpu'" if gpu is None else "use engine='auto'"
            raise EngineError(f"engine {asked!r}", f"it needs a CUDA GPU, and {reason}", advice)
    elif gpu is not None:
        raise EngineError(
            f"engine {asked!r} for arrays in GPU memory",
            "the CUDA engines",
            "use engine='auto', or copy to NumPy",
        )
    return asked, "asked for by name" if engine != "auto" else "set by NSA_ENGINE"


def _choose_gpu_engine(
    gpu: int, members: tuple[Pattern, ...], kinds: list[Kind], normaliser: Normaliser | None
) -> tuple[str, str]:
    """The engine whose predicted time over all patterns of a call is the shortest."""
    from .cuda.calls import why_unavailable

    why = why_unavailable("cuda-tile", gpu)
    if why is None:
        one = kinds[0]
        empty = np.zeros((1, 1), np.int32)
        request = Request((), empty, 1, 1, 1, 1, one.head_dim, one.value_dim, one.dtype, 1.0, normaliser)
        why = "; ".join(_engine("cuda-tile").why_not(request)) or None
    if why is not None:
        return "cuda-warp", f"the arrays lie in GPU memory, and the tile engine cannot run this call: {why}"
    predicted = [predict_gpu(member, kind) for member, kind in zip(members, kinds, strict=True)]
    tiles = sum(by_tiles for _, by_tiles, _ in predicted)
    rows = sum(by_rows for _, _, by_rows in predicted)
    if tiles <= rows:
        return "cuda-tile", "whole tiles on Tensor Cores cost less than single pairs"
    return "cuda-warp", "single pairs cost less than whole tiles on Tensor Cores"


def gpu_views(q: Any, k: Any, v: Any) -> tuple[Any, ...] | None:
    """Views of arrays that lie in GPU memory, or None if all lie on the host; a mixture is refused."""
    from .cuda.interchange import device_views

    return device_views(("q", "k", "v"), (q, k, v))


@functools.cache
def _engine(name: str) -> ModuleType | _ReferenceEngine:
    """The engine's three functions; imported when first used."""
    if name == "reference":
        return _ReferenceEngine()
    if name.startswith("cuda"):
        from .cuda import calls

        return calls.engine_module(name)
    from . import cpu

    return cpu


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


class _ReferenceEngine:
    """The dense float64 oracle behind the engines' three names."""

    @staticmethod
    def why_not(request: Request) -> list[str]:
        size = request.batch * request.heads * request.n_q * request.n_k
        if len(request.structures) == 1:
            size = request.n_q * request.n_k
        if size > _REFERENCE_LIMIT:
            return [f"dense masks of up to {_REFERENCE_LIMIT} entries, and this call has {size}"]
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

    def forward(self, request: Request, q: Any, k: Any, v: Any, out: Any, lse: Any) -> None:
        from . import reference

        mask = self._mask(request, q.shape[:-3])
        rule = rule_of(request.normaliser, request.heads)
        result, result_lse = reference.forward(q, k, v, mask, request.scale, rule=rule)
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
    ) -> None:
        from . import reference

        mask = self._mask(request, q.shape[:-3])
        dparameter = np.zeros(request.heads)
        rule = rule_of(request.normaliser, request.heads)
        gradients = reference.backward(dout, q, k, v, mask, request.scale, rule=rule, dparameter=dparameter)
        if dalpha is not None:
            dalpha[...] = dparameter
        for target, gradient in zip((dq, dk, dv), gradients, strict=True):
            target[...] = gradient
