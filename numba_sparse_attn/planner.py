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
from .errors import EngineError, ShapeError
from .formats.census import PANEL, Census, census_of_rows, census_of_tiles
from .formats.csr import Csr
from .formats.work import Request, Structure
from .patterns.heads import HeadPatterns
from .patterns.pattern import Pattern

__all__ = ["ENGINES", "Plan", "gpu_views", "make_plan"]

#: Engines of this version. "auto" stands for the first that can run the call.
ENGINES = ("cpu", "cuda-warp", "reference")
_COMING = {"cuda-tile": "Tensor-Core tiles"}

#: Sizes of batches whose requests a plan remembers.
_REQUESTS_KEPT = 64

#: Largest mask that the reference engine builds, in bytes.
_REFERENCE_LIMIT = 1 << 31


@dataclass(frozen=True)
class _Costs:
    """Nanoseconds of the forward pass on one core with 512-bit vectors; only their ratios decide.

    Fitted to both paths on windows, strided and random patterns of 4096 queries with d = 16, 64 and 128
    (``python benchmarks/run.py --cases 'path/*'`` repeats the measurement).
    """

    tile_flop: float  # of a computed pair, selected or not
    tile_pair: float
    tile_element: float  # of a query and its output
    row_flop: float
    row_pair: float
    row_element: float
    row_query: float


_COSTS = {
    np.dtype(np.float32): _Costs(0.0062, 0.2, 0.6, 0.016, 1.5, 0.8, 90.0),
    np.dtype(np.float64): _Costs(0.0115, 0.5, 0.9, 0.030, 1.5, 1.2, 90.0),
}


@dataclass(frozen=True)
class _Choice:
    """How one distinct pattern is run on the CPU, with the figures that decided it."""

    structure: Structure
    census: Census
    path: str
    tile_nanoseconds: float
    row_nanoseconds: float


@dataclass(frozen=True, eq=False)
class Plan:
    """A pattern made ready for one kind of call. Made by :func:`numba_sparse_attn.plan`.

    Attributes
    ----------
    engine : str
    pattern : Pattern or HeadPatterns
    heads, kv_heads, head_dim, value_dim, dtype, scale
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
    _choices: tuple[_Choice, ...]
    _reason: str
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

    def backward(
        self, dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Gradients (dq, dk, dv); arguments as in :func:`numba_sparse_attn.sparse_attention_backward`."""
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
        if request.batch:
            self._module.backward(request, *views)
        return dq, dk, dv

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
        uses = np.bincount(self._index.reshape(-1), minlength=len(self._choices))
        members = (self.pattern,) if isinstance(self.pattern, Pattern) else self.pattern.members
        for member, choice, count in zip(members, self._choices, uses, strict=True):
            lines += _describe(member, choice, int(count), n_q * n_k)
        return "\n".join(lines)

    @property
    def nbytes(self) -> int:
        """Memory that the plan's tiles and rows take."""
        return sum(choice.structure.nbytes for choice in self._choices)

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
    on_gpu: bool,
) -> Plan:
    """Choose an engine and, for every distinct pattern, a path; build what they need."""
    if isinstance(pattern, Pattern):
        members: tuple[Pattern, ...] = (pattern,)
        index = np.zeros(heads, np.int32)
    else:
        members = pattern.members
        index = pattern.member_of
        _which(index, index.shape[:-1], heads)
    name, reason = _choose_engine(engine, on_gpu)
    if name == "cuda-warp":
        choices = tuple(_warp_choice(member) for member in members)
    elif name == "reference":
        choices = tuple(_reference_choice(member) for member in members)
    else:
        accumulator = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        choices = tuple(_cpu_choice(member, head_dim, value_dim, accumulator) for member in members)
    plan = Plan(name, pattern, heads, kv_heads, head_dim, value_dim, dtype, scale, index, choices, reason)
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


def _choose_engine(engine: str, on_gpu: bool) -> tuple[str, str]:
    """Name of the engine and the reason in words."""
    asked = config.default_engine() if engine == "auto" else engine
    if asked == "auto":
        if on_gpu:
            return "cuda-warp", "the arrays lie in GPU memory"
        return "cpu", "the CPU engine is the fastest engine on this machine that can run this call"
    if asked in _COMING:
        raise EngineError(
            f"engine {asked!r} ({_COMING[asked]})",
            f"the engines of this version: {', '.join(ENGINES)}",
            "use engine='auto'",
        )
    if asked not in ENGINES:
        raise EngineError(
            f"engine {asked!r}",
            f"'auto' and {', '.join(map(repr, ENGINES))}",
            "correct the name (or NSA_ENGINE)",
        )
    if asked == "cuda-warp":
        from .cuda.calls import why_unavailable

        reason = why_unavailable()
        if reason is not None:
            raise EngineError(f"engine {asked!r}", f"it needs a CUDA GPU, and {reason}", "use engine='cpu'")
    elif on_gpu:
        raise EngineError(
            f"engine {asked!r} for arrays in GPU memory",
            "the CUDA engines",
            "use engine='auto', or copy to NumPy",
        )
    return asked, "asked for by name" if engine != "auto" else "set by NSA_ENGINE"


def gpu_views(q: Any, k: Any, v: Any) -> tuple[Any, ...] | None:
    """Views of arrays that lie in GPU memory, or None if all lie on the host; a mixture is refused."""
    from .cuda.interchange import device_views

    return device_views(("q", "k", "v"), (q, k, v))


def _warp_choice(pattern: Pattern) -> _Choice:
    """Rows, whatever the pattern: the engine has no other path."""
    rows = pattern.rows()
    return _Choice(rows, Census(rows.nnz, 0, None, 0), "warp", 0.0, 0.0)


def _cpu_choice(pattern: Pattern, head_dim: int, value_dim: int, accumulator: np.dtype[Any]) -> _Choice:
    """Tiles or rows, whichever the costs say; tiles of an irregular pattern only if they are used."""
    census = census_of_tiles(pattern.tiles()) if pattern.regular else census_of_rows(pattern.rows())
    costs = _COSTS[accumulator]
    flops = 2 * (head_dim + value_dim)
    elements = pattern.shape[0] * (head_dim + value_dim)
    tile = (
        census.meetings * PANEL * (flops * costs.tile_flop + costs.tile_pair) + elements * costs.tile_element
    )
    row = census.nnz * (flops * costs.row_flop + costs.row_pair)
    row += elements * costs.row_element + pattern.shape[0] * costs.row_query
    path = "tiles" if tile <= row else "rows"
    structure: Structure = pattern.tiles() if path == "tiles" else pattern.rows()
    return _Choice(structure, census, path, tile, row)


def _reference_choice(pattern: Pattern) -> _Choice:
    rows = pattern.rows()
    return _Choice(rows, Census(rows.nnz, 0, None, 0), "dense", 0.0, 0.0)


def _describe(pattern: Pattern, choice: _Choice, uses: int, size: int) -> list[str]:
    """The lines of ``explain`` for one distinct pattern."""
    census = choice.census
    density = census.nnz / size if size else 0.0
    lines = [f"pattern {pattern.name} ({uses} heads): {census.nnz} pairs a head, {1 - density:.2%} sparse"]
    if choice.path == "dense":
        return [*lines, "  dense float64 mask: the oracle, for checking; slow"]
    if choice.path == "warp":
        longest = int(np.diff(choice.structure.indptr).max(initial=0))
        size_mb = choice.structure.nbytes / 1e6
        return [*lines, f"  one warp a query over CSR rows of up to {longest} keys, {size_mb:.3g} MB"]
    kinds = ""
    if census.full_tiles is not None:
        kinds = f" ({census.full_tiles} full, {census.tiles - census.full_tiles} partial)"
    lines.append(f"  tiles of 128 x 128: {census.tiles}{kinds}, fill {census.fill:.1%}")
    lines.append(f"  keys met by panels of {PANEL} queries: {census.meetings}, fill {census.panel_fill:.1%}")
    tile, row = choice.tile_nanoseconds / 1e6, choice.row_nanoseconds / 1e6
    cheaper = "whole panels cost less" if choice.path == "tiles" else "single pairs cost less"
    lines.append(f"  predicted forward time of a head on one core: tiles {tile:.3g} ms, rows {row:.3g} ms")
    lines.append(f"  path {choice.path}: {cheaper}")
    lines.append(f"  memory of the {choice.path}: {choice.structure.nbytes / 1e6:.3g} MB")
    return lines


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
        result, result_lse = reference.forward(q, k, v, mask, request.scale)
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
    ) -> None:
        from . import reference

        mask = self._mask(request, q.shape[:-3])
        gradients = reference.backward(dout, q, k, v, mask, request.scale)
        for target, gradient in zip((dq, dk, dv), gradients, strict=True):
            target[...] = gradient
