"""Our own engines: as the planner runs them, on the dense pattern, and on a path of the caller's choice."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import numba_sparse_attn as nsa
from numba_sparse_attn.formats.work import Request, Structure

from ..kinds import PatternSpec
from ..score_changes import CHANGES
from ..workload import Workload
from . import Array, Prepared

__all__ = ["DENSE", "Own", "OwnBeside", "OwnChanged", "OwnPath", "own_dense"]

#: What the dense pattern is called beside a case's own.
DENSE = "dense"


@dataclass(frozen=True)
class Own:
    """An engine by its name, on a device; "auto" is whatever the planner chooses.

    On a GPU the planner chooses by the call, so there the name of "auto" is ``cuda-auto`` and the engine
    stands in the row beside it. `order` is "auto", "natural" (tokens as they come), or "declared": the first
    order that the pattern declares. `portable` asks for the tile engine's kernels for GPUs other than Hopper.
    """

    engine: str = "auto"
    device: str = "cpu"
    order: str = "auto"
    scores: tuple[Any, ...] = ()
    portable: bool = False

    @property
    def name(self) -> str:
        """The engine that will answer, with the order if it is not the planner's."""
        order = f"-{self.order}" if self.order != "auto" else ""
        return self._engine_name + order + "-mma" * self.portable

    @property
    def _engine_name(self) -> str:
        if self.engine != "auto":
            return self.engine
        if self.device == "cuda":
            return "cuda-auto"
        return nsa.plan(nsa.patterns.full(1), heads=1, head_dim=1).engine

    def why_absent(self) -> str:
        """The planner's refusal of an engine that this version or this machine lacks."""
        # The one element type that every engine on a GPU takes.
        dtype = "float16" if self.device == "cuda" else "float32"
        try:
            nsa.plan(
                nsa.patterns.full(1),
                heads=1,
                head_dim=1,
                dtype=dtype,
                engine=self.engine,
                device=self.device,
            )
        except nsa.EngineError as error:
            return str(error)
        return ""

    def why_not(self, workload: Workload) -> str:
        """The planner refuses while it plans, which is in :meth:`prepare` and not done twice."""
        if self.order == "declared" and isinstance(workload.pattern, nsa.HeadPatterns):
            return "patterns that differ from head to head declare orders of their own"
        return ""

    def version(self) -> dict[str, str]:
        """Ours; the packages below us are in every row."""
        return {"numba_sparse_attn": nsa.__version__}

    def plan(self, workload: Workload) -> nsa.Plan:
        """The plan of a workload."""
        order: Any = self.order
        if order == "declared":
            order = workload.head_pattern(0).orders[0]
        return nsa.plan(
            workload.pattern,
            heads=workload.heads,
            kv_heads=workload.kv_heads,
            head_dim=workload.head_dim,
            value_dim=workload.value_dim,
            dtype=workload.dtype,
            scale=workload.scale,
            engine=self.engine,
            order=order,
            device=self.device,
            scores=self.scores,
            normaliser=workload.normaliser,
        )

    def prepare(self, workload: Workload) -> Prepared:
        """Plan from a pattern that has computed nothing, then one call."""
        start = time.perf_counter()
        plan = self.plan(replace(workload, pattern=workload.spec.build()))
        planned = time.perf_counter()
        q, k, v = workload.q, workload.k, workload.v
        call, back = (_portable(plan), _portable(plan.backward)) if self.portable else (plan, plan.backward)
        out, lse = call(q, k, v, return_lse=True)
        if workload.direction != "forward":
            back(workload.dout, q, k, v, out, lse)
        workload.place.synchronize()
        called = time.perf_counter()

        def training(dout: Any) -> tuple[Any, Any, Any, Any]:
            fresh_out, fresh_lse = call(q, k, v, return_lse=True)
            return (fresh_out, *back(dout, q, k, v, fresh_out, fresh_lse)[:3])

        return Prepared(
            forward=lambda: call(q, k, v),
            backward=lambda dout: back(dout, q, k, v, out, lse)[:3],
            training=training,
            setup={"plan_seconds": planned - start, "first_call_seconds": called - planned},
            engine=plan.engine,
        )


def _portable(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, while the tile engine believes that no GPU is Hopper."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        tile: Any = importlib.import_module("numba_sparse_attn.cuda.tile")
        before, tile.has_wgmma = tile.has_wgmma, lambda device: False
        try:
            return call(*arguments, **keywords)
        finally:
            tile.has_wgmma = before

    return run


@dataclass(frozen=True)
class OwnBeside:
    """The same engine with softmax on a pattern of the same shape: what the case is measured against.

    Its result is not the case's, so it is not checked here.
    """

    own: Own
    label: str
    spec: PatternSpec

    @property
    def name(self) -> str:
        """The engine's name, marked."""
        return f"{self.own.name}-{self.label}"

    def why_absent(self) -> str:
        """As for the engine."""
        return self.own.why_absent()

    def why_not(self, workload: Workload) -> str:
        """As for the engine."""
        return self.own.why_not(self._workload(workload))

    def version(self) -> dict[str, str]:
        """As for the engine."""
        return self.own.version()

    def prepare(self, workload: Workload) -> Prepared:
        """The engine on that pattern; its rate counts that pattern's pairs."""
        other = self._workload(workload)
        return replace(self.own.prepare(other), flops=other.flops, checked=False, computes=self.spec.label)

    def _workload(self, workload: Workload) -> Workload:
        return replace(workload, spec=self.spec, pattern=self.spec.build(), normaliser=None)


@dataclass(frozen=True)
class OwnChanged:
    """The same engine on the case's pattern with scores changed: what a change costs.

    Its result is not the case's, so it is not checked here.
    """

    own: Own
    change: str

    @property
    def name(self) -> str:
        """The engine's name with the change."""
        return f"{self.own.name}-{self.change}"

    def why_absent(self) -> str:
        """As for the engine."""
        return self.own.why_absent()

    def why_not(self, workload: Workload) -> str:
        """The changes here have numbers for one pattern."""
        return "" if isinstance(workload.pattern, nsa.Pattern) else "one pattern for all heads"

    def version(self) -> dict[str, str]:
        """As for the engine."""
        return self.own.version()

    def prepare(self, workload: Workload) -> Prepared:
        """The engine with the change."""
        own = replace(self.own, scores=(CHANGES[self.change](workload),))
        return replace(own.prepare(workload), checked=False, computes=f"scores through {self.change}")


def own_dense(own: Own, spec: PatternSpec) -> OwnBeside:
    """The engine with nothing masked: what sparsity is measured against."""
    n_q, n_k = spec.build().shape
    return OwnBeside(own, DENSE, PatternSpec("full", {"n": n_q, "n_keys": n_k}))


@dataclass(frozen=True)
class OwnPath:
    """The CPU engine on tiles or on rows, whatever the planner would choose. Forward only."""

    path: str

    @property
    def name(self) -> str:
        """The engine's name with the path."""
        return f"cpu-{self.path}"

    def why_absent(self) -> str:
        """The CPU engine is always there."""
        return ""

    def why_not(self, workload: Workload) -> str:
        """One pattern for all heads, forward."""
        if workload.direction != "forward" or not isinstance(workload.pattern, nsa.Pattern):
            return "paths are compared forward, with one pattern for all heads"
        return ""

    def version(self) -> dict[str, str]:
        """Ours."""
        return {"numba_sparse_attn": nsa.__version__}

    def prepare(self, workload: Workload) -> Prepared:
        """Hand the engine the structure of that path."""
        engine = importlib.import_module("numba_sparse_attn.cpu")
        pattern = workload.spec.build()
        assert isinstance(pattern, nsa.Pattern)
        start = time.perf_counter()
        structure: Structure = pattern.tiles() if self.path == "tiles" else pattern.rows()
        planned = time.perf_counter()
        q, k, v = workload.q, workload.k, workload.v
        request = Request(
            structures=(structure,),
            which=np.zeros((1, workload.heads), np.int32),
            heads=workload.heads,
            kv_heads=workload.kv_heads,
            n_q=q.shape[1],
            n_k=k.shape[1],
            head_dim=workload.head_dim,
            value_dim=workload.value_dim,
            dtype=q.dtype,
            scale=workload.scale,
        )

        def forward() -> Array:
            out = np.empty((*q.shape[:2], workload.value_dim), q.dtype)
            engine.forward(request, q, k, v, out, None)
            return out

        forward()
        called = time.perf_counter()
        return Prepared(
            forward, setup={"plan_seconds": planned - start, "first_call_seconds": called - planned}
        )
