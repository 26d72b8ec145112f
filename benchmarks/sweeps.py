"""One setting changed at a time, on the host and on a GPU: length, density, head dimension, pattern, engine.

The tables are the same on both, at head counts and sizes that suit each; those of a GPU begin with ``gpu-``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from numba_sparse_attn.dynamic.catalogue import SELECTIONS
from numba_sparse_attn.patterns.catalogue import CATALOGUE

from .kinds import NORMALISERS, AttentionCase, Goal, PatternSpec, PlanCase, SelectCase

__all__ = [
    "CATALOGUE_LENGTHS",
    "CPU",
    "GPU",
    "Setting",
    "catalogue",
    "densities",
    "engine_map",
    "head_dims",
    "lengths",
    "normalisers",
    "plans",
    "score_changes",
    "selections",
]

#: About as many tokens has a catalogue pattern.
CATALOGUE_LENGTHS = (4096, 16_384, 65_536)
DIRECTIONS = ("forward", "backward")
#: Tokens by whose content is selected: of 16,384 on, what looks at all pairs takes seconds.
SELECTION_LENGTHS = (4096, 16_384)


@dataclass(frozen=True)
class Setting:
    """What a device is measured with.

    Attributes
    ----------
    heads : int
        At 16,384 tokens.
    longest_peers, longest_dense : int
        Lengths up to which what computes or looks at all pairs takes seconds and not minutes.
    peers, dense_peers : tuple of str
        For any pattern; and who is fast on full ones.
    """

    device: str
    prefix: str
    dtype: str
    head_dim: int
    heads: int
    longest_peers: int
    longest_dense: int
    peers: tuple[str, ...]
    dense_peers: tuple[str, ...]

    def case(self, name: str, spec: PatternSpec, **more: Any) -> AttentionCase:
        """A case on the device, with as many key heads as query heads."""
        settings = {"heads": self.heads, "head_dim": self.head_dim, "dtype": self.dtype, **more}
        settings.setdefault("kv_heads", settings["heads"])
        return AttentionCase(self.prefix + name, spec, device=self.device, **settings)


CPU = Setting("cpu", "", "float32", 64, 1, 8192, 16_384, ("torch_flex", "torch_sdpa", "jax_xla"), ())
GPU = Setting(
    "gpu",
    "gpu-",
    "float16",
    128,
    16,
    65_536,
    65_536,
    ("flex_cuda", "sdpa_cudnn", "jax_cudnn"),
    ("sdpa_flash",),
)


def _spec(function: str, **arguments: Any) -> PatternSpec:
    return PatternSpec(function, arguments)


def lengths(on: Setting) -> Iterator[AttentionCase]:
    """A window of 256 to each side, from a thousand tokens to a million: time should grow with n, not n²."""
    for direction in DIRECTIONS:
        for exponent in range(10, 21, 2):
            n = 1 << exponent
            yield on.case(
                f"length/window_{n}_{direction}",
                _spec("sliding_window", n=n, window=256),
                direction=direction,
                dense=n <= on.longest_dense,
                peers=on.peers if n <= on.longest_peers else (),
            )


def densities(on: Setting) -> Iterator[AttentionCase]:
    """Random blocks of 128 x 128 at 16,384 tokens, from all of them to one in forty, and windows likewise."""
    n, block = 16_384, 128
    blocks = [
        (f"blocks_{per_row}", _spec("random_blocks", n=n, block=block, per_row=per_row, seed=0))
        for per_row in (128, 64, 32, 13, 6, 3)
    ]
    windows = [
        (f"window_{window}", _spec("sliding_window", n=n, window=window))
        for window in (4096, 2048, 820, 410, 164)
    ]
    peers = on.peers if n <= on.longest_peers else on.peers[:1]
    for direction in DIRECTIONS:
        for name, spec in (*blocks, *windows):
            full = spec.arguments.get("per_row") == n // block
            yield on.case(
                f"density/{name}_{direction}",
                spec,
                direction=direction,
                peers=(*peers, *on.dense_peers) if full else peers,
            )


def head_dims(on: Setting) -> Iterator[AttentionCase]:
    """A window of 256 to each side at 4096 tokens, for the head dimensions that models have."""
    for direction in DIRECTIONS:
        for head_dim in (16, 32, 64, 80, 96, 128, 192, 256):
            yield on.case(
                f"head_dim/window_{head_dim}_{direction}",
                _spec("sliding_window", n=4096, window=256),
                heads=4 * on.heads,
                head_dim=head_dim,
                direction=direction,
                peers=on.peers,
            )


def catalogue(on: Setting, n: int) -> Iterator[AttentionCase]:
    """Every named pattern at about `n` tokens in its usual setting; a new pattern is here by itself."""
    table = "catalogue" if n == 4096 else f"catalogue_{n}"
    for direction in DIRECTIONS:
        for name, entry in CATALOGUE.items():
            yield on.case(
                f"{table}/{name}_{direction}",
                PatternSpec(name, entry.scaled(n)),
                heads=entry.heads or (4 if n == 4096 else on.heads),
                head_dim=64,
                direction=direction,
                dense=n == 4096,
            )


def normalisers(on: Setting) -> Iterator[AttentionCase]:
    """What stands in place of softmax, beside softmax, on a window and on keys at random."""
    for direction in DIRECTIONS:
        for spec in (
            _spec("sliding_window", n=4096, window=256),
            _spec("random_keys", n=4096, per_query=64, seed=0),
        ):
            for name in NORMALISERS:
                yield on.case(
                    f"normaliser/{name}_{spec.function}_{direction}",
                    spec,
                    heads=4 * on.heads,
                    head_dim=64,
                    direction=direction,
                    dense=False,
                    beside=(("softmax", spec),),
                    normaliser=name,
                )


def engine_map(on: Setting) -> Iterator[AttentionCase]:
    """Where tiles are faster and where single pairs: what the planner's predictions are measured with."""
    n, dtypes = (4096, ("float32", "float64")) if on.device == "cpu" else (16_384, ("float16", "bfloat16"))
    for dtype in dtypes:
        for head_dim in (32, 64, 128):
            for spec, number in (
                *((_spec("random_keys", n=n, per_query=count, seed=0), count) for count in (4, 16, 64, 256)),
                (_spec("sliding_window", n=n, window=16), 16),
                (_spec("dilated_window", n=n, window=16, dilation=16), 16),
                (_spec("random_blocks", n=n, block=32, per_row=8, seed=0), 8),
            ):
                yield on.case(
                    f"path/{spec.function}_{number}_d{head_dim}_{dtype}",
                    spec,
                    head_dim=head_dim,
                    dtype=dtype,
                    dense=False,
                    paths=True,
                    goals=(Goal("over_best", 1.25),),
                )


def plans(on: Setting) -> Iterator[PlanCase]:
    """Patterns of 65,536 tokens to plans."""
    n = 65_536
    for spec in (
        _spec("sliding_window", n=n, window=256),
        _spec("bigbird", n=n, block=64, window_blocks=1, global_blocks=2, random_blocks=3, seed=0),
        _spec("document_qa", n=n, question=64, window=256),
        _spec("causal", n=n),
        _spec("arbitrary_csr", n=n, per_row=64, seed=0),
    ):
        case = PlanCase(f"{on.prefix}plan/{spec.function}", spec, heads=on.heads, device=on.device)
        yield replace(case, head_dim=on.head_dim, dtype=on.dtype)


def selections() -> Iterator[SelectCase]:
    """Every selection by content in its usual setting; a new one is here by itself. On the host only."""
    for n in SELECTION_LENGTHS:
        for name in SELECTIONS:
            yield SelectCase(f"select/{name}_{n}", name, n)


def score_changes(on: Setting) -> Iterator[AttentionCase]:
    """What changes of scores cost, on a window and on pairs without structure, beside neither."""
    patterns = (
        ("window", PatternSpec("sliding_window", {"n": 4096, "window": 128})),
        ("random_graph", PatternSpec("arbitrary_csr", {"n": 4096, "per_row": 64, "seed": 0})),
    )
    for direction in DIRECTIONS:
        for name, spec in patterns:
            yield AttentionCase(
                f"{on.prefix}score/{name}_{direction}",
                spec,
                4 * on.heads,
                4 * on.heads,
                dtype=on.dtype,
                direction=direction,
                dense=False,
                changes=("alibi", "softcap", "relative", "bias", "learnt_bias", "sink", "function"),
                device=on.device,
                engine="auto" if on.device == "cpu" else "cuda-warp",
            )
