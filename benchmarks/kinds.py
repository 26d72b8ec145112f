"""The kinds of measurement, as data: what a case of each kind says. The cases are in `cases.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numba_sparse_attn as nsa
from numba_sparse_attn.dynamic.catalogue import SELECTIONS
from numba_sparse_attn.dynamic.catalogue import Case as SelectionCase
from numba_sparse_attn.patterns.catalogue import CATALOGUE

from .graphs import GRAPHS

__all__ = [
    "NORMALISERS",
    "AttentionCase",
    "BuildCase",
    "Case",
    "ColdStartCase",
    "GatherCase",
    "Goal",
    "HostCase",
    "MemoryCase",
    "PatternSpec",
    "PlanCase",
    "RateCase",
    "SelectCase",
    "device_of",
]


#: What may stand in place of softmax, by the name that a case gives it.
NORMALISERS: Mapping[str, nsa.normalisers.Normaliser] = {
    "softmax_plus_one": nsa.normalisers.softmax_plus_one(),
    "sigmoid": nsa.normalisers.sigmoid(),
    "sparsemax": nsa.normalisers.sparsemax(),
    "entmax15": nsa.normalisers.entmax15(),
    "entmax_1.25": nsa.normalisers.entmax(1.25),
}


@dataclass(frozen=True)
class PatternSpec:
    """How to make a pattern: the name of a pattern function and its arguments.

    A specification crosses process borders as JSON; a pattern is built where it is measured.
    """

    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nsa.Pattern | nsa.HeadPatterns:
        """A fresh pattern that has computed nothing yet."""
        if self.function in GRAPHS:
            graph: nsa.Pattern | nsa.HeadPatterns = GRAPHS[self.function](**self.arguments)
            return graph
        made: nsa.Pattern | nsa.HeadPatterns = getattr(nsa.patterns, self.function)(**self.arguments)
        return made

    @property
    def label(self) -> str:
        """The call as one would write it, sequences cut short where the catalogue knows how."""
        if self.function in CATALOGUE:
            return CATALOGUE[self.function].call(self.arguments)
        return f"{self.function}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


@dataclass(frozen=True)
class Goal:
    """A bound that a measure of our row must keep.

    The measure is a field of the row, by its name. ``speedup`` is over the time of the contender `over`,
    ``slowdown`` over our own time on the pattern that the case calls `over`.
    """

    measure: str
    bound: float
    at_least: bool = False
    over: str = ""

    def met(self, value: float) -> bool:
        """Whether `value` keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    @property
    def label(self) -> str:
        """The bound in words."""
        over = f" over {self.over}" if self.over else ""
        return f"{self.measure}{over} {'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass(frozen=True)
class AttentionCase:
    """One pass over one pattern at one size, ours beside peers.

    Attributes
    ----------
    direction : "forward", "backward" or "training"
        Training is a forward pass and its backward pass together; on a GPU only.
    dense : bool
        Also time our own engine on ``full(n)``, in the same turns.
    beside : tuple of (name, PatternSpec)
        Also time our own engine on these patterns, with softmax, in the same turns.
    normaliser : str
        A name of NORMALISERS, or none for softmax.
    paths : bool
        Also time the tile path and the row path, whatever the planner would choose: on a GPU, its engines.
    orders : bool
        Also time our own engine with tokens as they come, and in the first order that the pattern declares,
        whatever the planner would choose.
    changes : tuple of str
        Also time our own engine with scores changed, by these names of :mod:`benchmarks.score_changes`.
    energy : bool
        Also take the energy of a call, for seconds on end. On a GPU that counts it only.
    peers : tuple of str
        Names in :mod:`benchmarks.peers`.
    device : "cpu" or "gpu"
        Where the arrays lie.
    engine : str
        Our engine, unless the command line names another.
    portable : bool
        Our tile engine is to use its kernels for GPUs other than Hopper.
    """

    name: str
    spec: PatternSpec
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 64
    dtype: str = "float32"
    direction: str = "forward"
    dense: bool = True
    beside: tuple[tuple[str, PatternSpec], ...] = ()
    normaliser: str = ""
    paths: bool = False
    orders: bool = False
    changes: tuple[str, ...] = ()
    energy: bool = False
    peers: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()
    device: str = "cpu"
    engine: str = "auto"
    portable: bool = False


@dataclass(frozen=True)
class BuildCase:
    """Pattern to tiles, both directions, in a fresh process after warm-up."""

    name: str
    spec: PatternSpec
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class PlanCase:
    """A pattern that has computed nothing yet to a plan, for arrays that lie on `device`."""

    name: str
    spec: PatternSpec
    heads: int = 4
    head_dim: int = 64
    dtype: str = "float32"
    goals: tuple[Goal, ...] = ()
    device: str = "cpu"
    engine: str = "auto"

    @property
    def kv_heads(self) -> int:
        """As many as query heads."""
        return self.heads


@dataclass(frozen=True)
class MemoryCase:
    """Peak memory of planning and one call, beyond its inputs; on the CPU that of a fresh process."""

    name: str
    spec: PatternSpec
    direction: str = "forward"
    heads: int = 4
    head_dim: int = 64
    dtype: str = "float32"
    goals: tuple[Goal, ...] = ()
    device: str = "cpu"
    engine: str = "auto"

    @property
    def kv_heads(self) -> int:
        """As many as query heads."""
        return self.heads


@dataclass(frozen=True)
class ColdStartCase:
    """Start of a process to its first result, with an empty or a filled kernel cache.

    The arrays are NumPy's on every device, so that no other library's start is timed; on a GPU the engine
    has to be named, which then copies them.
    """

    name: str
    spec: PatternSpec
    warm: bool
    repeats: int = 5
    heads: int = 4
    head_dim: int = 64
    dtype: str = "float32"
    goals: tuple[Goal, ...] = ()
    device: str = "cpu"
    engine: str = "auto"


@dataclass(frozen=True)
class RateCase:
    """The machine's own rate: a square matrix product, or a copy with `size` bytes read and written.

    Attributes
    ----------
    what : "product" or "copy"
    """

    name: str
    size: int
    what: str = "product"
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class GatherCase:
    """The GPU's own rate of reading random rows: keys and values of a pattern, added up, no attention."""

    name: str
    spec: PatternSpec
    heads: int = 8
    head_dim: int = 64
    dtype: str = "float32"
    device: str = "gpu"

    @property
    def kv_heads(self) -> int:
        """As many as query heads."""
        return self.heads

    @property
    def direction(self) -> str:
        """Reading is what a forward pass does."""
        return "forward"


@dataclass(frozen=True)
class HostCase:
    """Time of one call at a size at which it is mostly Python's: on a GPU, to queue it.

    Attributes
    ----------
    what : "launch", "forward", "forward_out", "backward" or "api"
        A bare kernel launch, on a GPU only; ``plan(q, k, v)``; the same with ``out=``;
        ``plan.backward(...)``; ``sparse_attention(q, k, v, pattern)``, which finds the plan by itself.
    """

    name: str
    what: str
    spec: PatternSpec
    heads: int = 1
    head_dim: int = 64
    dtype: str = "float16"
    goals: tuple[Goal, ...] = ()
    device: str = "gpu"
    engine: str = "auto"

    @property
    def kv_heads(self) -> int:
        """As many as query heads."""
        return self.heads

    @property
    def direction(self) -> str:
        """Which arrays the call needs."""
        return "backward" if self.what == "backward" else "forward"


@dataclass(frozen=True)
class SelectCase:
    """A selection by content, and attention over what it selects.

    On a GPU what is timed is a call that selects, plans and computes attention, beside dense attention.

    Attributes
    ----------
    selection : str
        Name of a function in :mod:`numba_sparse_attn.dynamic`.
    setting : Case of a selection, optional
        Sizes and arguments other than the usual ones for the length.
    peers : tuple of str
        Who computes attention over all pairs.
    """

    name: str
    selection: str
    length: int
    dtype: str = "float32"
    device: str = "cpu"
    setting: SelectionCase | None = None
    peers: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()

    @property
    def sizes(self) -> SelectionCase:
        """Lengths, heads and arguments; the usual ones are in the selection's own table."""
        return self.setting or SELECTIONS[self.selection].scaled(self.length)

    @property
    def label(self) -> str:
        """The call as one would write it."""
        return SELECTIONS[self.selection].call(self.sizes)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.sizes.heads

    @property
    def kv_heads(self) -> int:
        """Key heads."""
        return self.sizes.kv_heads

    @property
    def head_dim(self) -> int:
        """Width of q and k."""
        return self.sizes.head_dim


Case = (
    AttentionCase
    | BuildCase
    | PlanCase
    | MemoryCase
    | ColdStartCase
    | RateCase
    | GatherCase
    | HostCase
    | SelectCase
)


def device_of(case: Case) -> str:
    """Where a case is measured: "cpu" or "gpu"."""
    return str(getattr(case, "device", "cpu"))
