"""What is measured: named cases, as data. Nothing here runs anything.

A name is ``table/case``; ``python benchmarks/run.py --cases 'table/*'`` runs a table. To add a case,
add it to its table below.
"""

from __future__ import annotations

from typing import Any

from . import gpu_cases, sweeps
from .kinds import (
    AttentionCase,
    BuildCase,
    Case,
    ColdStartCase,
    GatherCase,
    Goal,
    HostCase,
    MemoryCase,
    PatternSpec,
    PlanCase,
    RateCase,
    SelectCase,
)

__all__ = ["all_cases", "quick_cases", "tiny_cases"]

#: Peers of an attention case that is small enough for an n x n mask.
ALL_PEERS = ("torch_flex", "torch_sdpa", "jax_xla", "scipy_unfused", "numpy_dense")


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
            Goal("speedup", 2.0, at_least=True, over="torch_flex"),
            Goal("share_of_sgemm", 0.65, at_least=True),
        ),
    ),
    AttentionCase(
        "target/bigbird_forward",
        BIGBIRD,
        peers=ALL_PEERS,
        goals=(Goal("speedup", 1.5, at_least=True, over="torch_flex"),),
    ),
    AttentionCase(
        "target/document_qa_forward",
        DOCUMENT_QA,
        peers=ALL_PEERS,
        goals=(Goal("speedup", 1.5, at_least=True, over="torch_flex"),),
    ),
    AttentionCase(
        "target/window_backward",
        WINDOW,
        direction="backward",
        peers=("torch_sdpa", "jax_xla", "scipy_unfused", "numpy_dense"),
        goals=(Goal("speedup", 8.0, at_least=True, over="torch_sdpa"),),
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

#: The three tables that the project is asked for: windows, shares of blocks, a question about a document.
TABLES: tuple[Case, ...] = tuple(
    AttentionCase(
        f"table/{name}{'' if direction == 'forward' else '_backward'}",
        spec,
        heads=heads,
        kv_heads=heads,
        direction=direction,
        peers=peers,
    )
    for direction in ("forward", "backward")
    for name, spec, heads, peers in (
        *(
            (f"sliding_window_{n}", _spec("sliding_window", n=n, window=128), 4, ALL_PEERS)
            for n in (512, 1024, 2048)
        ),
        *(
            (
                f"blocks_{share}_{n}",
                _spec("random_blocks", n=n, block=128, per_row=per_row, seed=0),
                heads,
                ALL_PEERS if n <= 4096 else ("torch_flex",),
            )
            for share, n, per_row, heads in (
                ("50_percent", 4096, 16, 4),
                ("25_percent", 8192, 16, 2),
                ("10_percent", 16_384, 13, 1),
            )
        ),
        ("document_qa_4096", DOCUMENT_QA, 4, ALL_PEERS),
    )
)

#: Patterns without structure: no tiles are dense.
GRAPHS: tuple[Case, ...] = tuple(
    AttentionCase(
        f"graph/{name}_{direction}", spec, direction=direction, dense=False, peers=("scipy_unfused",)
    )
    for direction in ("forward", "backward")
    for name, spec in (
        ("regular", _spec("arbitrary_csr", n=65_536, per_row=16, seed=0)),
        ("power_law", _spec("power_law_graph", n=65_536, average=16, exponent=2.1, seed=0)),
        ("mesh", _spec("neighborhood", shape=(256, 256), kernel=3)),
    )
)

#: What one core multiplies is not what a machine does, and its memory is another limit.
RATES: tuple[Case, ...] = (
    RateCase("machine/product_float32", 4096),
    RateCase("machine/product_float64", 4096, dtype="float64"),
    RateCase("machine/copy", 2 << 30, "copy"),
)

_CALL = _spec("sliding_window", n=16, window=2)
HOST: tuple[Case, ...] = tuple(
    HostCase(f"host/{what}", what, _CALL, head_dim=16, dtype="float32", device="cpu")
    for what in ("forward", "forward_out", "backward", "api")
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
    AttentionCase(
        "tiny/order",
        _spec("dilated_window", n=640, window=24, dilation=5),
        head_dim=16,
        dense=False,
        orders=True,
    ),
    AttentionCase("tiny/changes", _TINY_WINDOW, head_dim=16, dense=False, changes=("bias", "function")),
    AttentionCase(
        "tiny/normaliser",
        _TINY_WINDOW,
        head_dim=16,
        direction="backward",
        dense=False,
        beside=(("softmax", _TINY_WINDOW),),
        normaliser="entmax15",
    ),
    BuildCase("tiny/build", _TINY_WINDOW),
    BuildCase("tiny/build_csr", _spec("arbitrary_csr", n=640, per_row=4, seed=0)),
    RateCase("tiny/copy", 1 << 16, "copy"),
    PlanCase("tiny/plan", _TINY_WINDOW),
    SelectCase("tiny/select", "moba", 640),
    HostCase("tiny/host", "api", _CALL, head_dim=16, dtype="float32", device="cpu"),
    MemoryCase("tiny/memory", _TINY_WINDOW),
    ColdStartCase("tiny/cold", _TINY_WINDOW, warm=False, repeats=1),
)


#: On a machine with a GPU ``--tiny`` runs these too.
GPU_TINY: tuple[Case, ...] = (
    RateCase("tiny/gpu_copy", 1 << 20, "copy", device="gpu"),
    RateCase("tiny/gpu_product", 128, dtype="float16", device="gpu"),
    GatherCase("tiny/gpu_gather", _spec("arbitrary_csr", n=640, per_row=4, seed=0)),
    HostCase("tiny/gpu_launch", "launch", _TINY_WINDOW),
    HostCase("tiny/gpu_host", "forward", _TINY_WINDOW),
    HostCase("tiny/gpu_host_out", "forward_out", _TINY_WINDOW),
    HostCase("tiny/gpu_host_backward", "backward", _TINY_WINDOW),
    HostCase("tiny/gpu_host_api", "api", _TINY_WINDOW),
    PlanCase("tiny/gpu_plan", _TINY_WINDOW, device="gpu"),
    SelectCase("tiny/gpu_select", "block_top_k", 640, "float16", "gpu", peers=("sdpa_cudnn",)),
    AttentionCase("tiny/gpu_energy", _TINY_WINDOW, dtype="float16", dense=False, energy=True, device="gpu"),
    *(
        AttentionCase(
            f"tiny/gpu_{direction}_{dtype}",
            spec,
            dtype=dtype,
            direction=direction,
            beside=(("causal", _spec("causal", n=640)),),
            peers=peers,
            device="gpu",
        )
        for spec, dtype, peers in (
            (_TINY_WINDOW, "float16", ("gather_only", "flex_cuda", "sdpa_cudnn", "sdpa_efficient")),
            (_spec("causal", n=640), "bfloat16", gpu_cases.DENSE_PEERS),
            (_spec("arbitrary_csr", n=640, per_row=16, seed=0), "float32", gpu_cases.GRAPH_PEERS),
            (
                _spec("power_law_graph", n=640, average=8, exponent=2.1, seed=0),
                "float64",
                gpu_cases.GRAPH_PEERS,
            ),
        )
        for direction in ("forward", "backward", "training")
    ),
    *(
        MemoryCase(f"tiny/gpu_memory_{direction}", _TINY_WINDOW, direction, device="gpu")
        for direction in ("forward", "backward")
    ),
)


def all_cases() -> list[Case]:
    """Every case, in the order in which it is run: what matters most comes first, a limit of time in mind."""
    on = sweeps.CPU
    return [
        *RATES,
        *TARGETS,
        *TABLES,
        *COLD,
        *HOST,
        *BUILDS,
        *sweeps.plans(on),
        *sweeps.selections(),
        *MEMORY,
        *GRAPHS,
        *sweeps.lengths(on),
        *sweeps.densities(on),
        *sweeps.head_dims(on),
        *sweeps.engine_map(on),
        *sweeps.score_changes(on),
        *sweeps.normalisers(on),
        *(case for n in sweeps.CATALOGUE_LENGTHS for case in sweeps.catalogue(on, n)),
        *QUICK,
        *gpu_cases.gpu_cases(),
        *gpu_cases.gpu_quick_cases(),
    ]


def tiny_cases() -> list[Case]:
    """The cases of ``--tiny``."""
    return [*TINY, *GPU_TINY]


def quick_cases() -> list[Case]:
    """The cases of ``--quick``."""
    return [*QUICK, *gpu_cases.gpu_quick_cases()]
