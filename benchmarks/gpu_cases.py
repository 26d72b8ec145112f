"""What is measured on a GPU: named cases, as data. They are skipped, with the reason, where there is none.

``gpu/`` is the machine itself and the warp engine, one warp a query, at graphs and at what else fits no tile;
``tile/`` is for whichever engine the planner chooses where tiles are dense. Tables that the host has too are
in :mod:`benchmarks.sweeps`. Goals are those that the project has set itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from numba_sparse_attn.dynamic.catalogue import Case as Selection

from . import sweeps
from .kinds import (
    AttentionCase,
    Case,
    ColdStartCase,
    GatherCase,
    Goal,
    HostCase,
    MemoryCase,
    PatternSpec,
    RateCase,
    SelectCase,
)

__all__ = ["DENSE_PEERS", "GRAPH_PEERS", "gpu_cases", "gpu_quick_cases"]

GIB = 1 << 30
UNFUSED = "torch_unfused"


def _spec(function: str, **arguments: Any) -> PatternSpec:
    return PatternSpec(function, arguments)


def _gpu(name: str, spec: PatternSpec, heads: int, dtype: str = "float16", **more: Any) -> AttentionCase:
    """A case with as many key heads as query heads, and no dense mode unless asked for."""
    settings = {"dense": False, "device": "gpu", **more}
    return AttentionCase(name, spec, heads, heads, dtype=dtype, **settings)


# The machine ---------------------------------------------------------------------------------------------

RANDOM_GRAPH = _spec("arbitrary_csr", n=65_536, per_row=64, seed=0)

RATES: tuple[Case, ...] = (
    RateCase("gpu/copy", 8 * GIB, "copy", device="gpu"),
    RateCase("gpu/product_float16", 8192, dtype="float16", device="gpu"),
    RateCase("gpu/product_bfloat16", 8192, dtype="bfloat16", device="gpu"),
    RateCase("gpu/product_float32", 8192, dtype="float32", device="gpu"),
    RateCase("gpu/product_float64", 8192, dtype="float64", device="gpu"),
    GatherCase("gpu/gather_256_bytes", RANDOM_GRAPH),
    GatherCase("gpu/gather_128_bytes", RANDOM_GRAPH, dtype="float16"),
)

# Graphs --------------------------------------------------------------------------------------------------

#: They store or gather every pair.
GRAPH_PEERS = (UNFUSED, "pyg", "dgl")
_OVER_FLEX = Goal("speedup", 1.0, at_least=True, over="flex_cuda")


def _over_unfused(ratio: float) -> Goal:
    return Goal("speedup", ratio, at_least=True, over=UNFUSED)


def _random_graph() -> Iterator[AttentionCase]:
    for dtype in ("float32", "float16"):
        for direction in ("forward", "backward", "training"):
            goals: tuple[Goal, ...] = (_OVER_FLEX,)
            peers: tuple[str, ...] = (*GRAPH_PEERS, "flex_cuda")
            if direction == "forward":
                goals = (Goal("share_of_gather", 0.60, at_least=True), _over_unfused(4.0), _OVER_FLEX)
                peers = ("gather_only", *peers, "flashinfer")
            elif direction == "training":
                goals = (_over_unfused(4.0), _OVER_FLEX)
            yield _gpu(
                f"gpu/random_graph_{dtype}_{direction}",
                RANDOM_GRAPH,
                8,
                dtype,
                direction=direction,
                peers=peers,
                goals=goals,
                engine="cuda-warp",
            )


def _power_law() -> Iterator[AttentionCase]:
    n, average = 262_144, 20
    regular = _spec("arbitrary_csr", n=n, per_row=average, seed=0)
    hubs = _spec("power_law_graph", n=n, average=average, exponent=2.1, seed=0)
    for direction in ("forward", "training"):
        yield _gpu(
            f"gpu/power_law_{direction}",
            hubs,
            8,
            direction=direction,
            beside=(("regular", regular),),
            peers=GRAPH_PEERS,
            goals=(Goal("slowdown", 1.3, over="regular"),),
            engine="cuda-warp",
        )


def _mesh() -> Iterator[AttentionCase]:
    """A vertex of a 2-D mesh and its eight neighbors."""
    mesh = _spec("neighborhood", shape=(256, 256), kernel=3)
    for direction in ("forward", "backward"):
        yield _gpu(
            f"gpu/mesh_{direction}", mesh, 8, direction=direction, peers=(UNFUSED,), engine="cuda-warp"
        )


# Windows, memory, host -----------------------------------------------------------------------------------


def _windows() -> Iterator[AttentionCase]:
    """Against our own full attention on the same engine."""
    for n, ratio in ((512, 1.7), (1024, 2.5), (2048, 3.2)):
        for heads in (1, 16):
            yield _gpu(
                f"gpu/window_{n}_{heads}_heads",
                _spec("sliding_window", n=n, window=128),
                heads,
                dense=True,
                goals=(Goal("speedup_dense", ratio, at_least=True),),
                engine="cuda-warp",
            )


LONG_WINDOW = _spec("sliding_window", n=65_536, window=256)
#: In units of results and pattern, whose size is O(n d) and O(n window): a constant, whatever the length.
MEMORY: tuple[Case, ...] = tuple(
    MemoryCase(
        f"gpu/memory_window_65536_{direction}",
        LONG_WINDOW,
        direction,
        dtype="float16",
        goals=(Goal("peak_over_results", 3.0),),
        device="gpu",
        engine="cuda-warp",
    )
    for direction in ("forward", "backward")
)

_TINY = _spec("sliding_window", n=256, window=8)
#: Seconds that the host may take to queue a call.
HOST: tuple[Case, ...] = (
    HostCase("gpu/host_launch", "launch", _TINY, goals=(Goal("seconds", 10e-6),)),
    HostCase("gpu/host_forward", "forward", _TINY, goals=(Goal("seconds", 25e-6),), engine="cuda-warp"),
    HostCase("gpu/host_forward_out", "forward_out", _TINY, engine="cuda-warp"),
    HostCase("gpu/host_backward", "backward", _TINY, engine="cuda-warp"),
    HostCase("gpu/host_forward_tile", "forward", _TINY, engine="cuda-tile"),
    HostCase("gpu/host_api", "api", _TINY),
)

#: Engines are named, because the arrays are NumPy's.
COLD: tuple[Case, ...] = tuple(
    ColdStartCase(
        f"gpu/cold_{engine.removeprefix('cuda-')}_{'warm' if warm else 'empty'}_cache",
        _spec("sliding_window", n=4096, window=256),
        warm,
        repeats=3,
        dtype="float16",
        device="gpu",
        engine=engine,
    )
    for engine in ("cuda-tile", "cuda-warp")
    for warm in (False, True)
)

#: Joules a call: dense work, sparse work and a graph, each for seconds on end.
ENERGY: tuple[Case, ...] = tuple(
    _gpu(f"gpu/energy_{name}", spec, heads, head_dim=head_dim, energy=True, peers=peers)
    for name, spec, heads, head_dim, peers in (
        (
            "window_16384",
            _spec("sliding_window", n=16_384, window=256),
            16,
            128,
            ("flex_cuda", "sdpa_cudnn", "jax_cudnn"),
        ),
        ("causal_16384", _spec("causal", n=16_384), 16, 128, ("flex_cuda", "sdpa_cudnn", "jax_cudnn")),
        (
            "blocks_10_percent_16384",
            _spec("random_blocks", n=16_384, block=128, per_row=13, seed=0),
            16,
            128,
            ("flex_cuda", "sdpa_cudnn"),
        ),
        ("random_graph", RANDOM_GRAPH, 8, 64, (UNFUSED, "flex_cuda", "gather_only")),
    )
)


# Tiles ---------------------------------------------------------------------------------------------------

LONGEST_DENSE = 8192
DENSE_PEERS = ("sdpa_cudnn", "sdpa_flash", "sdpa_efficient", "jax_cudnn")
TILE_PEERS = ("flex_cuda", "sdpa_cudnn", "flashinfer")
TABLE_PEERS = (*TILE_PEERS, "sdpa_efficient", "sdpa_math", "jax_cudnn", "jax_xla")


#: Forward, backward, and both; ours over theirs.
_Goals = Mapping[str, Goal]


def _over(peer: str, *, measure: str = "speedup", **ratios: float) -> _Goals:
    return {direction: Goal(measure, ratio, at_least=True, over=peer) for direction, ratio in ratios.items()}


#: Where masks are what matters.
_OVER_FLEX_TWICE = _over("flex_cuda", forward=2.0, training=2.0)


def _tables() -> Iterator[AttentionCase]:
    """The three tables that the project is asked for: blocks, windows, a document and a question."""
    for share, n, per_row, heads, forward, training in (
        ("50", 4096, 16, 64, 1.9, 1.8),
        ("25", 8192, 16, 32, 3.7, 3.5),
        ("10", 16_384, 13, 16, 9.0, 8.0),
    ):
        spec = _spec("random_blocks", n=n, block=128, per_row=per_row, seed=0)
        goals = _over("sdpa_cudnn", measure="speedup_all_pairs", forward=forward, training=training)
        yield from _passes(f"tile/blocks_{share}_percent_{n}", spec, heads, TABLE_PEERS, goals=goals)
    for n, ratio in ((512, 1.7), (1024, 2.5), (2048, 3.2)):
        yield _gpu(
            f"tile/window_128_{n}",
            _spec("sliding_window", n=n, window=128),
            16,
            dense=True,
            peers=TABLE_PEERS,
            goals=(
                Goal("speedup_dense", ratio, at_least=True),
                Goal("speedup_all_pairs", 1.0, at_least=True, over="sdpa_cudnn"),
            ),
        )
    document = _spec("document_qa", n=4096, question=64, window=256)
    yield from _passes("tile/document_qa_4096", document, 64, TABLE_PEERS, goals=_OVER_FLEX_TWICE)


def _tiles() -> Iterator[AttentionCase]:
    """Sizes that fill the chip: what would be a batch is more heads."""
    causal = _spec("causal", n=16_384)
    goals = _over("sdpa_cudnn", forward=1.0, backward=0.85)
    yield from _passes("tile/causal_16384", causal, 16, (*DENSE_PEERS, "flex_cuda"), goals=goals)
    window = _spec("sliding_window", n=16_384, window=256)
    yield from _passes("tile/window_256_16384", window, 16, goals=_OVER_FLEX_TWICE)
    window = _spec("sliding_window", n=32_768, window=1024, causal=True)
    yield from _passes("tile/causal_window_1024_32768", window, 16, goals=_OVER_FLEX_TWICE)
    for dtype in ("float16", "bfloat16"):
        for head_dim in (64, 128, 256):
            goals = _over("sdpa_cudnn", forward=1.0, backward=0.85)
            if head_dim == 256:
                goals = _over("sdpa_cudnn", forward=0.9)
            for n, heads in ((4096, 64), (16_384, 16)):
                name = f"tile/dense_{n}_d{head_dim}_{dtype}"
                spec = _spec("full", n=n)
                yield from _passes(name, spec, heads, DENSE_PEERS, dtype, head_dim, goals)
    documents = _spec("documents", lengths=[1024] * 16, causal=True)
    yield from _passes("tile/documents_16384", documents, 16, goals=_OVER_FLEX_TWICE)
    for name, spec in (
        ("longformer", _spec("longformer", n=4096, window=256, tokens=[0, 1, 2, 3])),
        (
            "bigbird",
            _spec("bigbird", n=4096, block=64, window_blocks=1, global_blocks=2, random_blocks=3, seed=0),
        ),
        ("dilated_window", _spec("dilated_window", n=4096, window=64, dilation=4)),
        ("indentation", _spec("code_indentation", n=4096, window=32)),
    ):
        yield from _passes(f"tile/{name}_4096", spec, 64, goals=_OVER_FLEX_TWICE)
    # mma.sync, which every GPU since Ampere has, beside a kernel that uses nothing else either.
    for head_dim, goals in ((128, _over("sdpa_flash", forward=1.0)), (64, {})):
        for case in _passes(
            f"tile/portable_4096_d{head_dim}",
            _spec("full", n=4096),
            64,
            ("sdpa_flash",),
            "float16",
            head_dim,
            goals,
        ):
            yield replace(case, portable=True, engine="cuda-tile")
    for n in (65_536, 1_048_576):
        spec = _spec("longformer", n=n, window=256, tokens=[0, 1, 2, 3])
        yield _gpu(f"tile/long_{n}", spec, 8, head_dim=128)


def _selections() -> Iterator[SelectCase]:
    """Selections by content with attention over what they select, a tenth of all pairs, in one call; beside
    dense attention. What is chosen in other blocks than whole tiles is measured on the host: `select/*`.
    """
    n, tenth = 32_768, 26
    for selection, arguments in (
        ("block_top_k", {"budget": tenth, "block": 128}),
        ("quest", {"budget": tenth, "page": 128, "query_block": 128}),
        ("nsa_blocks", {"budget": tenth, "block": 128, "query_block": 128}),
    ):
        for causal in (False, True):
            setting = Selection(n, n, {**arguments, "causal": causal}, heads=16, kv_heads=16, head_dim=128)
            name = f"gpu-select/{selection}_{n}{'_causal' if causal else ''}"
            # The dense kernel is timed on all pairs, which is what it would need without a selection.
            goals = () if causal else (Goal("speedup", 1.0, at_least=True, over="sdpa_cudnn"),)
            yield SelectCase(
                name, selection, n, "float16", "gpu", setting=setting, peers=("sdpa_cudnn",), goals=goals
            )


def _passes(
    name: str,
    spec: PatternSpec,
    heads: int,
    peers: tuple[str, ...] = TILE_PEERS,
    dtype: str = "float16",
    head_dim: int = 128,
    goals: _Goals = MappingProxyType({}),
) -> Iterator[AttentionCase]:
    """Forward and backward, and both where a goal asks for it.

    Beside our own dense mode, which no pattern may be slower than, where that is a matter of seconds for any
    engine.
    """
    dense = spec.function != "full" and spec.arguments.get("n", LONGEST_DENSE + 1) <= LONGEST_DENSE
    own = (Goal("speedup_dense", 1.0, at_least=True),) if dense else ()
    for direction in ("forward", "backward", "training"):
        if direction == "training" and direction not in goals:
            continue
        yield _gpu(
            f"{name}_{direction}",
            spec,
            heads,
            dtype,
            head_dim=head_dim,
            direction=direction,
            dense=dense,
            peers=peers,
            goals=(*((goals[direction],) if direction in goals else ()), *own),
        )


# Orders --------------------------------------------------------------------------------------------------


def _orders() -> Iterator[AttentionCase]:
    """Tiles in an order in which they are full or empty, moving tokens included, over tiles as tokens come.

    No goal for the neighborhood: 128 cells see 560 others, so no order of 128 x 128 tiles saves two in three.
    """
    n = 16_384
    for name, spec, heads, ratio in (
        ("dilated_window", _spec("dilated_window", n=n, window=64, dilation=16), 16, 3.0),
        ("strided", _spec("strided", n=n, stride=128, window=128), 16, 3.0),
        ("lsh", _spec("hashed_tokens", n=n, heads=8, chunk=32, buckets=512, seed=0), 8, 3.0),
        ("neighborhood", _spec("neighborhood", shape=(128, 128), kernel=13), 16, None),
        ("columns", _spec("axial", shape=(128, 128), axis=0), 16, 3.0),
    ):
        for head_dim in (128, 64):
            for direction in ("forward", "training"):
                goal = Goal("alternatives", ratio or 1.0, at_least=True, over="cuda-tile-natural")
                yield _gpu(
                    f"order/{name}_d{head_dim}_{direction}",
                    spec,
                    heads,
                    head_dim=head_dim,
                    direction=direction,
                    engine="cuda-tile",
                    orders=True,
                    goals=(goal,) if ratio else (),
                )


# The lists -----------------------------------------------------------------------------------------------


def _tour() -> Iterator[Case]:
    """One line a pattern, in a minute."""
    yield RateCase("gpu-quick/product", 8192, dtype="float16", device="gpu")
    window = _spec("sliding_window", n=4096, window=256)
    for spec in (
        _spec("causal", n=4096),
        window,
        _spec("dilated_window", n=4096, window=64, dilation=4),
        _spec("strided", n=4096, stride=64, window=64),
        _spec("longformer", n=4096, window=256, tokens=[0, 1, 2, 3]),
        _spec("bigbird", n=4096, block=64, window_blocks=1, global_blocks=2, random_blocks=3, seed=0),
        _spec("document_qa", n=4096, question=64, window=256),
        _spec("documents", lengths=[512, 1024, 256, 1280, 1024]),
        _spec("arbitrary_csr", n=16_384, per_row=64, seed=0),
    ):
        dense = spec.function != "arbitrary_csr"
        yield _gpu(f"gpu-quick/{spec.function}", spec, 8, dense=dense, peers=("sdpa_cudnn",))
    yield _gpu("gpu-quick/sliding_window_backward", window, 8, direction="backward", dense=True)


def gpu_quick_cases() -> list[Case]:
    """The cases of ``--quick`` where there is a GPU."""
    return list(_tour())


def _changed_tiles() -> Iterator[AttentionCase]:
    """What changes of scores cost on Tensor Cores, beside FlexAttention with the same score_mod."""
    for change, name, spec in (
        ("alibi", "alibi_window", _spec("sliding_window", n=16_384, window=256)),
        ("softcap", "softcap_causal", _spec("causal", n=16_384)),
    ):
        for direction in ("forward", "backward", "training"):
            yield _gpu(
                f"gpu-score/tile_{name}_{direction}",
                spec,
                16,
                head_dim=128,
                direction=direction,
                changes=(change,),
                peers=("flex_cuda", f"flex_cuda_{change}"),
                engine="cuda-tile",
            )


def gpu_cases() -> list[Case]:
    """All of them, what matters most first: a limit of time cuts the end off."""
    on = sweeps.GPU
    return [
        *RATES,
        *_tables(),
        *_random_graph(),
        *_tiles(),
        *_orders(),
        *_selections(),
        *_power_law(),
        *HOST,
        *MEMORY,
        *sweeps.lengths(on),
        *sweeps.densities(on),
        *sweeps.head_dims(on),
        *ENERGY,
        *COLD,
        *sweeps.plans(on),
        *sweeps.engine_map(on),
        *_changed_tiles(),
        *sweeps.score_changes(on),
        *sweeps.normalisers(on),
        *_mesh(),
        *_windows(),
        *(case for n in sweeps.CATALOGUE_LENGTHS for case in sweeps.catalogue(on, n)),
    ]
