"""What is measured: named cases, as data. Nothing here runs anything.

A name is ``table/case``; ``python benchmarks/run.py --cases 'table/*'`` runs a table. To add a case,
add it to its table below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import numba_sparse_attn as nsa
from numba_sparse_attn.formats.csr import Csr
from numba_sparse_attn.patterns.catalogue import CATALOGUE

__all__ = [
    "AttentionCase",
    "BuildCase",
    "Case",
    "ColdStartCase",
    "Goal",
    "MemoryCase",
    "PatternSpec",
    "RateCase",
    "all_cases",
    "quick_cases",
    "tiny_cases",
]

#: Peers of an attention case that is small enough for an n x n mask.
ALL_PEERS = ("torch_flex", "torch_sdpa", "scipy_unfused", "numpy_dense")


@dataclass(frozen=True)
class PatternSpec:
    """How to make a pattern: the name of a pattern function and its arguments.

    A specification crosses process borders as JSON; a pattern is built where it is measured.
    """

    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nsa.Pattern | nsa.HeadPatterns:
        """A fresh pattern that has computed nothing yet."""
        if self.function == "arbitrary_csr":
            return arbitrary_csr(**self.arguments)
        made: nsa.Pattern | nsa.HeadPatterns = getattr(nsa.patterns, self.function)(**self.arguments)
        return made

    @property
    def label(self) -> str:
        """The call as one would write it."""
        return f"{self.function}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


def arbitrary_csr(n: int, per_row: int, seed: int) -> nsa.Pattern:
    """Keys without any structure: `per_row` random ones for each of `n` queries, stored as CSR.

    Each row takes one key from each of `per_row` equal strata, which keeps rows sorted and free of
    duplicates without sorting ten million numbers.
    """
    strata = n // per_row
    offsets = np.random.default_rng(seed).integers(0, strata, (n, per_row), dtype=np.int32)
    indices = (offsets + np.arange(per_row, dtype=np.int32) * np.int32(strata)).reshape(-1)
    indptr = np.arange(n + 1, dtype=np.int64) * per_row
    indices.flags.writeable = indptr.flags.writeable = False
    return nsa.Pattern.from_csr(Csr((n, n), indptr, indices), name=f"arbitrary_csr(n={n}, per_row={per_row})")


@dataclass(frozen=True)
class Goal:
    """A bound that a measure of our row must keep: ``speedup`` is over `peer`, the rest are row fields."""

    measure: str
    bound: float
    at_least: bool = False
    peer: str = ""

    def met(self, value: float) -> bool:
        """Whether `value` keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    @property
    def label(self) -> str:
        """The bound in words."""
        over = f" over {self.peer}" if self.peer else ""
        return f"{self.measure}{over} {'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass(frozen=True)
class AttentionCase:
    """Forward or backward of one pattern at one size, ours beside peers.

    Attributes
    ----------
    direction : "forward" or "backward"
    dense : bool
        Also time our own engine on ``full(n)``, in the same turns.
    paths : bool
        Also time the tile path and the row path, whatever the planner would choose.
    peers : tuple of str
        Names in :mod:`benchmarks.peers`.
    """

    name: str
    spec: PatternSpec
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 64
    dtype: str = "float32"
    direction: str = "forward"
    dense: bool = True
    paths: bool = False
    peers: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class BuildCase:
    """Pattern to tiles, both directions, in a fresh process after warm-up."""

    name: str
    spec: PatternSpec
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class MemoryCase:
    """Peak memory of a fresh process during one call, beyond its inputs."""

    name: str
    spec: PatternSpec
    direction: str = "forward"
    heads: int = 4
    head_dim: int = 64
    dtype: str = "float32"
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class ColdStartCase:
    """Start of a process to its first result, with an empty or a filled kernel cache."""

    name: str
    spec: PatternSpec
    warm: bool
    repeats: int = 5
    heads: int = 4
    head_dim: int = 64
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class RateCase:
    """The machine's own rate: a square float32 matrix product by NumPy."""

    name: str
    size: int


Case = AttentionCase | BuildCase | MemoryCase | ColdStartCase | RateCase


def _spec(function: str, **arguments: Any) -> PatternSpec:
    return PatternSpec(function, arguments)


WINDOW = _spec("sliding_window", n=4096, window=256)
BIGBIRD = _spec("bigbird", n=4096, block=64, window_blocks=1, global_blocks=2, random_blocks=3, seed=0)
DOCUMENT_QA = _spec("document_qa", n=4096, question=64, window=256)

#: The tour: one line a pattern, ours alone, against our own dense mode.
QUICK: tuple[Case, ...] = (
    RateCase("quick/sgemm", 2048),
    *(
        AttentionCase(f"quick/{spec.function}", spec)
        for spec in (
            _spec("causal", n=4096),
            WINDOW,
            _spec("dilated_window", n=4096, window=64, dilation=4),
            _spec("strided", n=4096, stride=64, window=64),
            _spec("longformer", n=4096, window=256, tokens=[0, 1, 2, 3]),
            BIGBIRD,
            DOCUMENT_QA,
            _spec("documents", lengths=[512, 1024, 256, 1280, 1024]),
            _spec("random_keys", n=4096, per_query=64, seed=0),
        )
    ),
    AttentionCase("quick/sliding_window_backward", WINDOW, direction="backward"),
)

#: The bounds that the project has set itself.
TARGETS: tuple[Case, ...] = (
    AttentionCase(
        "target/window_forward",
        WINDOW,
        peers=(*ALL_PEERS, "numpy_sgemm"),
        goals=(
            Goal("speedup", 2.0, at_least=True, peer="torch_flex"),
            Goal("share_of_sgemm", 0.65, at_least=True),
        ),
    ),
    AttentionCase(
        "target/bigbird_forward",
        BIGBIRD,
        peers=ALL_PEERS,
        goals=(Goal("speedup", 1.5, at_least=True, peer="torch_flex"),),
    ),
    AttentionCase(
        "target/document_qa_forward",
        DOCUMENT_QA,
        peers=ALL_PEERS,
        goals=(Goal("speedup", 1.5, at_least=True, peer="torch_flex"),),
    ),
    AttentionCase(
        "target/window_backward",
        WINDOW,
        direction="backward",
        peers=("torch_sdpa", "scipy_unfused", "numpy_dense"),
        goals=(Goal("speedup", 8.0, at_least=True, peer="torch_sdpa"),),
    ),
)

_SMALL = (Goal("seconds", 0.020), Goal("tiles_bytes", 1_000_000))
_LARGE = (Goal("seconds", 0.060), Goal("tiles_bytes", 8_000_000))

#: Patterns to tiles.
BUILDS: tuple[Case, ...] = (
    BuildCase("build/sliding_window", _spec("sliding_window", n=65_536, window=256), _SMALL),
    BuildCase("build/longformer", _spec("longformer", n=65_536, window=256, tokens=[0, 1, 2, 3]), _SMALL),
    BuildCase(
        "build/bigbird",
        _spec("bigbird", n=65_536, block=64, window_blocks=1, global_blocks=2, random_blocks=3, seed=0),
        _SMALL,
    ),
    BuildCase("build/dilated_window", _spec("dilated_window", n=65_536, window=64, dilation=4), _SMALL),
    BuildCase("build/document_qa", _spec("document_qa", n=65_536, question=64, window=256), _SMALL),
    BuildCase("build/causal", _spec("causal", n=65_536), _LARGE),
    BuildCase("build/full", _spec("full", n=65_536), _LARGE),
    BuildCase("build/strided", _spec("strided", n=65_536, stride=256, window=256), _LARGE),
    BuildCase(
        "build/sliding_window_1m",
        _spec("sliding_window", n=1_048_576, window=256),
        (Goal("seconds", 0.300),),
    ),
    BuildCase(
        "build/arbitrary_csr",
        _spec("arbitrary_csr", n=65_536, per_row=153, seed=0),
        (Goal("seconds", 1.0),),
    ),
)

COLD: tuple[Case, ...] = (
    ColdStartCase("cold/empty_cache", WINDOW, warm=False, repeats=3, goals=(Goal("seconds", 5.0),)),
    ColdStartCase("cold/warm_cache", WINDOW, warm=True, goals=(Goal("seconds", 1.5),)),
)

#: Memory beyond the inputs, in units of results and tiles: a constant, whatever the length, is O(n d).
_LINEAR = (Goal("peak_over_results", 3.0),)
MEMORY: tuple[Case, ...] = tuple(
    MemoryCase(f"memory/{spec.function}_{spec.arguments['n']}_{direction}", spec, direction, goals=_LINEAR)
    for spec, direction in (
        (_spec("sliding_window", n=16_384, window=256), "forward"),
        (_spec("sliding_window", n=65_536, window=256), "forward"),
        (_spec("sliding_window", n=65_536, window=256), "backward"),
        (_spec("document_qa", n=65_536, question=64, window=256), "forward"),
    )
)

#: The settings that the published tables of sparse attention use, at head counts that suit a CPU.
TABLES: tuple[Case, ...] = (
    *(
        AttentionCase(f"table/sliding_window_{n}", _spec("sliding_window", n=n, window=128), peers=ALL_PEERS)
        for n in (512, 1024, 2048)
    ),
    *(
        AttentionCase(
            f"table/blocks_{share}_{n}",
            _spec("random_blocks", n=n, block=128, per_row=per_row, seed=0),
            heads=heads,
            kv_heads=heads,
            peers=ALL_PEERS if n <= 4096 else ("torch_flex",),
        )
        for share, n, per_row, heads in (
            ("50_percent", 4096, 16, 4),
            ("25_percent", 8192, 16, 2),
            ("10_percent", 16_384, 13, 1),
        )
    ),
)

#: Where the planner changes from tiles to rows: what its cost constants are measured with.
PATHS: tuple[Case, ...] = tuple(
    AttentionCase(
        f"path/{spec.function}_{number}_d{head_dim}_{dtype}",
        spec,
        heads=1,
        kv_heads=1,
        head_dim=head_dim,
        dtype=dtype,
        dense=False,
        paths=True,
    )
    for dtype in ("float32", "float64")
    for head_dim in (32, 64, 128)
    for spec, number in (
        *((_spec("random_keys", n=4096, per_query=count, seed=0), count) for count in (4, 16, 64, 256)),
        (_spec("sliding_window", n=4096, window=16), 16),
        (_spec("dilated_window", n=4096, window=16, dilation=16), 16),
    )
)


_TINY_WINDOW = _spec("sliding_window", n=640, window=24)
#: Every kind of measurement at the size of a toy: shows that the suite works; the numbers mean nothing.
TINY: tuple[Case, ...] = (
    RateCase("tiny/sgemm", 128),
    AttentionCase(
        "tiny/forward", _TINY_WINDOW, kv_heads=2, head_dim=16, peers=("scipy_unfused", "numpy_dense")
    ),
    AttentionCase("tiny/backward", _TINY_WINDOW, head_dim=16, direction="backward", peers=("scipy_unfused",)),
    AttentionCase(
        "tiny/path", _spec("random_keys", n=256, per_query=8, seed=0), head_dim=16, dense=False, paths=True
    ),
    BuildCase("tiny/build", _TINY_WINDOW),
    BuildCase("tiny/build_csr", _spec("arbitrary_csr", n=640, per_row=4, seed=0)),
    MemoryCase("tiny/memory", _TINY_WINDOW),
    ColdStartCase("tiny/cold", _TINY_WINDOW, warm=False, repeats=1),
)


def _catalogue() -> Iterator[AttentionCase]:
    """Every named pattern at about 4096 tokens in its usual setting; a new pattern is here by itself."""
    for name, entry in CATALOGUE.items():
        heads = entry.heads or 4
        for direction in ("forward", "backward"):
            spec = PatternSpec(name, entry.scaled(4096))
            yield AttentionCase(f"catalogue/{name}_{direction}", spec, heads, heads, direction=direction)


def all_cases() -> list[Case]:
    """Every case, in the order in which it is run."""
    return [*QUICK, *TARGETS, *BUILDS, *COLD, *MEMORY, *TABLES, *PATHS, *_catalogue()]


def tiny_cases() -> list[Case]:
    """The cases of ``--tiny``."""
    return list(TINY)


def quick_cases() -> list[Case]:
    """The cases of ``--quick``."""
    return list(QUICK)
