"""Which engine runs a call, on which path, and why.

A plan is made once for a pattern and a kind of call (heads, head dimensions, element type) and then
runs on any arrays of that kind, with any batch axes. It holds what was built for it: tiles or rows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import arrays, config
from .choices import (
    Choice,
    Kind,
    choose_cpu,
    choose_dense,
    choose_gpu,
    most_parts,
    moving_on_cpu,
    moving_on_gpu,
    predict_cpu,
    predict_gpu,
)
from .errors import EngineError, ShapeError
from .formats.changes import Scored
from .formats.tiles import TILE
from .formats.work import Request
from .normalisers import Normaliser
from .ordering import Arrangement, Call, arrange, as_wish, natural
from .orders.order import Order
from .patterns.heads import HeadPatterns
from .patterns.pattern import Pattern
from .scores._calls import CallScores, kinds_of
from .scores._change import Change
from .scores.sink import sink_gradient, with_sink

__all__ = ["ENGINES", "Plan", "gpu_views", "make_plan"]

#: Engines of this version. "auto" stands for the one that should be fastest of those that can run the call.
ENGINES = ("cpu", "cuda-tile", "cuda-warp", "reference")

#: Sizes of batches whose requests a plan remembers.
_REQUESTS_KEPT = 64

#: Plans that a pattern keeps.
_PLANS_KEPT = 32
#: What becomes of scores that nobody changes.
_UNCHANGED = Scored((), None, False)


@dataclass(frozen=True, eq=False)
class Plan:
    """A pattern made ready for one kind of call. Made by :func:`numba_sparse_attn.plan`.

    Attributes
    ----------
    engine : str
    pattern : Pattern or HeadPatterns
    heads, kv_heads, head_dim, value_dim, dtype, scale, normaliser
        The kind of call that it was made for.
    orders : tuple of Order
        In which order tokens are computed, one for every distinct pattern; none if they stay where they are.
    fold : int
        Into how many classes by their number tokens fall that are computed on their own, where they lie.
    scores : tuple of Change
        What scores go through before the softmax.
    """

    engine: str
    pattern: Pattern | HeadPatterns
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: np.dtype[Any]
    scale: float
    orders: tuple[Order, ...]
    fold: int
    _index: npt.NDArray[np.int32]
    _choices: tuple[Choice, ...]
    _reason: str
    _order_reason: str
    scores: tuple[Change, ...] = ()
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

            settings: Any = {"return_lse": return_lse, "out": out, "scores": self._call_scores}
            return calls.forward(self._module, self._request, q, k, v, **settings)
        q, k, v = arrays.as_array(q, "q"), arrays.as_array(k, "k"), arrays.as_array(v, "v")
        dimensions = arrays.check_arrays(q, k, v)
        request = self._request(dimensions)
        out = arrays.output_array(out, (*q.shape[:-1], v.shape[-1]), q.dtype, (q, k, v))
        scored = self._call_scores.of(request, dimensions.lead) if self._call_scores else _UNCHANGED
        lse_wanted = return_lse or scored.sink is not None
        lse = np.empty(q.shape[:-1], request.accumulator) if lse_wanted else None
        flat = dimensions.flat
        views: list[Any] = [arrays.with_heads_axis(array, flat) for array in (q, k, v, out)]
        views.append(None if lse is None else arrays.with_heads_axis(lse, flat))
        if out.size or (lse is not None and lse.size):
            self._module.forward(request, *views, *scored.changes)
        if scored.sink is not None:
            with_sink(views[3], views[4], scored.sink)
        return (out, lse) if return_lse else out

    def backward(self, dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any) -> tuple[Any, ...]:
        """Gradients (dq, dk, dv), and a fourth item where there is more to learn.

        That is a tuple of the gradients of `scores`, or dalpha, the gradient of a normaliser's parameter.
        Arguments as in :func:`numba_sparse_attn.sparse_attention_backward`.
        """
        scores = self._call_scores
        if scores:
            scores.require_derivatives()
        if self.engine.startswith("cuda"):
            from .cuda import calls

            return calls.backward(self._module, self._request, dout, q, k, v, out, lse, scores)
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
        scored = scores.of(request, dimensions.lead) if scores else _UNCHANGED
        more: dict[str, Any] = {"changes": scored.changes[0]} if scored.changes else {}
        if self._is_learned:
            more["dalpha"] = np.zeros(self.heads, request.accumulator)
        found: Any = []
        if request.batch:
            found = self._module.backward(request, *views, **more)
        if self._is_learned:
            return dq, dk, dv, more["dalpha"]
        if not scores:
            return dq, dk, dv
        of_sink = None
        if scored.sink_learns:
            logits = scored.sink if scored.sink is not None else scored.changes[0].sink
            assert logits is not None
            of_sink = sink_gradient(views[0], views[4], views[5], logits)
        return dq, dk, dv, *scores.learnt(request, scored, found, of_sink)

    def with_scores(self, scores: tuple[Change, ...]) -> Plan:
        """The same plan with other numbers in changes of the same kinds; keeps what engines remember."""
        if scores == self.scores:
            return self
        plan = object.__new__(Plan)
        plan.__dict__.update(self.__dict__, scores=scores)
        return plan

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
        lines += [f"scores: {change.describe()}" for change in self.scores]
        if self.normaliser is not None:
            lines.append(f"normaliser {self.normaliser.name}")
        uses = np.bincount(self._index.reshape(-1), minlength=len(self._choices))
        members = (self.pattern,) if isinstance(self.pattern, Pattern) else self.pattern.members
        for member, choice, count in zip(members, self._choices, uses, strict=True):
            size = n_q * n_k
            nnz = self.fold * choice.census.nnz
            density = nnz / size if size else 0.0
            lines.append(
                f"pattern {member.name} ({count} heads): {nnz} pairs a head, {1 - density:.2%} sparse"
            )
            if self.orders:
                lines.append(f"  tiles in the caller's order: {member.census.tiles}; in order")
            elif self.fold > 1:
                lines.append(
                    f"  tiles in the caller's order: {member.census.tiles}; in each of {self.fold} classes"
                )
            lines += [f"  {line}" for line in choice.lines]
        lines.append(f"order {self._order_reason}")
        if self.engine == "cuda-tile":
            # Two float32 a query, for whole tiles of queries.
            workspace = 8 * self.heads * -(-n_q // TILE) * TILE
            lines.append(f"gradients: in two sweeps, with a workspace of {workspace} bytes a batch element")
            parts = most_parts(self.heads * -(-n_q // TILE)) * TILE * 4 * (self.head_dim + self.value_dim)
            lines.append(f"tile rows that others would wait for: in parts, in at most {parts / 1e6:.3g} MB")
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

    @property
    def _call_scores(self) -> CallScores | None:
        return CallScores(self.scores, self.engine) if self.scores else None

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
            orders=self.orders,
            fold=self.fold,
            changed=kinds_of(self.scores),
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
    order: Any,
    scores: tuple[Change, ...] = (),
    normaliser: Normaliser | None = None,
) -> Plan:
    """Choose an engine, an order of tokens and, for every distinct pattern, a path; build what they need.

    `gpu` is the number of the GPU that the arrays lie on. A plan is kept with its pattern: asked for again,
    it costs nothing.
    """
    asked = config.default_engine() if engine == "auto" else engine
    wish = as_wish(order, pattern.shape)
    changed = tuple(change.key for change in scores)
    kind = heads, kv_heads, head_dim, value_dim, dtype, scale, engine, asked, gpu, wish, changed, normaliser
    plan: Plan | None = pattern.memo.get(kind)
    if plan is None:
        sizes = heads, kv_heads, head_dim, value_dim, dtype, scale
        plan = _new_plan(pattern, *sizes, engine, gpu, wish, scores, normaliser)
        if len(pattern.memo) >= _PLANS_KEPT:
            pattern.memo.clear()
        pattern.memo[kind] = plan
    return plan.with_scores(scores)


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
    wish: str | Order,
    scores: tuple[Change, ...],
    normaliser: Normaliser | None,
) -> Plan:
    changed = kinds_of(scores)
    if isinstance(pattern, Pattern):
        members: tuple[Pattern, ...] = (pattern,)
        index = np.zeros(heads, np.int32)
    else:
        members = pattern.members
        index = pattern.member_of
        _which(index, index.shape[:-1], heads)
    uses = np.bincount(index.reshape(-1), minlength=len(members))
    if scores and normaliser is not None:
        raise EngineError(
            f"scores= beside normaliser={normaliser.name}",
            "changes of scores before softmax, or another normaliser",
            "leave one of the two out",
        )
    by_rows = None
    if changed:
        by_rows = "scores are changed pair by pair"
    elif normaliser is not None and normaliser.needs_rows:
        by_rows = f"{normaliser.name} is computed row by row"
    kinds = [Kind(int(count), head_dim, value_dim, dtype, by_rows, changed) for count in uses]
    if by_rows:
        if isinstance(wish, Order):
            raise EngineError(
                f"order= where {by_rows}",
                "orders of tokens for what is computed in tiles",
                "leave order= out",
            )
        wish = "natural"
    call = Call(index, heads, kv_heads, head_dim + value_dim, dtype.itemsize)
    name, reason, arranged = _choose_engine(engine, gpu, members, kinds, call, wish, changed, normaliser)
    if by_rows:
        arranged = replace(arranged, reason=f"natural: {by_rows}")
    pairs = zip(
        arranged.members, [replace(kind, heads=kind.heads * arranged.fold) for kind in kinds], strict=True
    )
    if name in ("cuda-tile", "cuda-warp"):
        path = name.removeprefix("cuda-")
        choices = tuple(
            choose_gpu(member, kind, "tiles" if path == "tile" else "rows") for member, kind in pairs
        )
    elif name == "reference":
        choices = tuple(choose_dense(member) for member in members)
    else:
        choices = tuple(choose_cpu(member, kind) for member, kind in pairs)
    sizes = heads, kv_heads, head_dim, value_dim, dtype, scale
    ordering = arranged.orders, arranged.fold
    plan = Plan(name, pattern, *sizes, *ordering, index, choices, reason, arranged.reason, scores, normaliser)
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
    call: Call,
    wish: str | Order,
    changed: tuple[str, ...],
    normaliser: Normaliser | None,
) -> tuple[str, str, Arrangement]:
    """Name of the engine, the reason in words, and the order that it computes in."""
    asked = config.default_engine() if engine == "auto" else engine
    if asked == "auto" and gpu is not None:
        return _choose_gpu_engine(gpu, members, kinds, call, wish, changed, normaliser)
    reason = "asked for by name" if engine != "auto" else "set by NSA_ENGINE"
    if asked == "auto":
        asked = "cpu"
        reason = "the CPU engine is the fastest engine on this machine that can run this call"
    if asked not in ENGINES:
        raise EngineError(
            f"engine {asked!r}",
            f"'auto' and {', '.join(map(repr, ENGINES))}",
            "correct the name (or NSA_ENGINE)",
        )
    if asked.startswith("cuda"):
        from .cuda.calls import why_unavailable

        refusal = why_unavailable(asked, gpu or 0)
        if refusal is not None:
            advice = "use engine='cpu'" if gpu is None else "use engine='auto'"
            raise EngineError(f"engine {asked!r}", f"it needs a CUDA GPU, and {refusal}", advice)
    elif gpu is not None:
        raise EngineError(
            f"engine {asked!r} for arrays in GPU memory",
            "the CUDA engines",
            "use engine='auto', or copy to NumPy",
        )
    return asked, reason, _arranged(asked, wish, members, kinds, call)


def _arranged(
    engine: str, wish: str | Order, members: tuple[Pattern, ...], kinds: list[Kind], call: Call
) -> Arrangement:
    """The order that an engine computes in."""
    if engine == "reference":
        return natural(members, "the oracle has no tiles")
    if engine == "cuda-warp" and not isinstance(wish, Order):
        seconds = sum(predict_gpu(member, kind)[2] for member, kind in zip(members, kinds, strict=True))
        return natural(members, "single pairs cost the same in any order", seconds)

    def predict(member: Pattern, kind: Kind) -> float:
        if engine == "cpu":
            return min(predict_cpu(member, kind))
        _, tiles, rows = predict_gpu(member, kind)
        return tiles if engine == "cuda-tile" else rows

    moving = moving_on_cpu if engine == "cpu" else moving_on_gpu
    # Rows that are pages apart, as those of a class often are, share the few places of a CPU's first cache.
    folds = engine == "cuda-tile"
    return arrange(wish, members, kinds, call, predict=predict, moving=moving, folds=folds)


def _choose_gpu_engine(
    gpu: int,
    members: tuple[Pattern, ...],
    kinds: list[Kind],
    call: Call,
    wish: str | Order,
    changed: tuple[str, ...],
    normaliser: Normaliser | None,
) -> tuple[str, str, Arrangement]:
    """The engine whose predicted time over all patterns of a call is the shortest."""
    from .cuda.calls import why_unavailable

    by_rows = _arranged("cuda-warp", wish, members, kinds, call)
    why = why_unavailable("cuda-tile", gpu)
    if why is None:
        one = kinds[0]
        empty = np.zeros((1, 1), np.int32)
        sizes = 1, 1, 1, 1, one.head_dim, one.value_dim
        request = Request((), empty, *sizes, one.dtype, 1.0, changed=changed, normaliser=normaliser)
        why = "; ".join(_engine("cuda-tile").why_not(request)) or None
    if why is not None:
        reason = f"the arrays lie in GPU memory, and the tile engine cannot run this call: {why}"
        return "cuda-warp", reason, by_rows
    by_tiles = _arranged("cuda-tile", wish, members, kinds, call)
    if by_tiles.seconds <= by_rows.seconds:
        return "cuda-tile", "whole tiles on Tensor Cores cost less than single pairs", by_tiles
    return "cuda-warp", "single pairs cost less than whole tiles on Tensor Cores", by_rows


def gpu_views(q: Any, k: Any, v: Any) -> tuple[Any, ...] | None:
    """Views of arrays that lie in GPU memory, or None if all lie on the host; a mixture is refused."""
    from .cuda.interchange import device_views

    return device_views(("q", "k", "v"), (q, k, v))


@functools.cache
def _engine(name: str) -> Any:
    """The engine's three functions; imported when first used."""
    if name == "reference":
        from .reference_engine import ReferenceEngine

        return ReferenceEngine()
    if name.startswith("cuda"):
        from .cuda import calls

        return calls.engine_module(name)
    from . import cpu

    return cpu
