"""One setting in full: configuration, sparsity, performance, quality. ``run.py --report NAME`` prints it.

NAME is one of the settings that the project's brief has a report of, the name of a pattern, which is then
shown in its usual setting, or a call of one, ``strided(n=4096, stride=64, window=64)``.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import inspect
import json.decoder
import math
import typing
from collections.abc import Callable
from typing import Any

import numpy as np

import numba_sparse_attn as nsa
from numba_sparse_attn.patterns.catalogue import CATALOGUE

from .kinds import AttentionCase, PatternSpec
from .runner import Field, run_case
from .tables import format_bytes, format_seconds, format_table

__all__ = ["REPORTS", "Report", "named"]

#: Longest pattern whose rows are listed and which is run; beyond, the report stops at the sparsity.
LONGEST = 16_384
#: Tokens of a pattern that is asked for by its name alone.
_USUAL = 4096


def _section(title: str, lines: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join([title, *(f"  {name.ljust(width)}  {text}" for name, text in lines)])


def _sparsity(pattern: nsa.Pattern, beside: list[tuple[str, str]], title: str = "Sparsity") -> str:
    n_q, n_k = pattern.shape
    tiles = pattern.tiles()
    lines = [
        ("selected pairs", f"{pattern.nnz:,} of {n_q * n_k:,}"),
        ("sparsity", f"{pattern.sparsity:.2%}"),
        ("keys per query, mean", f"{pattern.nnz / n_q:.1f}"),
    ]
    if n_q <= LONGEST:
        lengths = np.diff(pattern.rows().indptr)
        lines.append(("fewest, median, most", f"{lengths.min()}, {int(np.median(lengths))}, {lengths.max()}"))
    return _section(
        title,
        [
            *lines,
            ("tiles of 128 x 128", f"{tiles.full_count:,} full, {tiles.partial_count:,} partial"),
            ("pairs selected in them", f"{tiles.fill:.1%}"),
            ("memory of the tiles", f"{format_bytes(tiles.nbytes)}, {len(tiles.pool)} different masks"),
            ("a dense mask would take", format_bytes(math.prod(pattern.shape))),
            *beside,
        ],
    )


#: On the host, and on a GPU, which four heads would not fill.
SETTINGS: dict[bool, dict[str, Any]] = {
    False: {"heads": 4, "kv_heads": 4, "head_dim": 64, "dtype": "float32", "device": "cpu"},
    True: {"heads": 32, "kv_heads": 32, "head_dim": 128, "dtype": "float16", "device": "gpu"},
}
PEERS = {
    (False, "forward"): ("torch_flex", "torch_sdpa", "jax_xla"),
    (False, "backward"): ("torch_sdpa", "jax_xla"),
    (True, "forward"): ("flex_cuda", "sdpa_cudnn", "sdpa_efficient"),
    (True, "backward"): ("flex_cuda", "sdpa_cudnn", "sdpa_efficient"),
}


def _setting(spec: PatternSpec, field: Field) -> dict[str, Any]:
    """Of the calls; a pattern of several heads says how many there are."""
    setting = SETTINGS[field.gpu is not None]
    pattern = spec.build()
    if isinstance(pattern, nsa.HeadPatterns):
        return {**setting, "heads": len(pattern), "kv_heads": len(pattern)}
    return setting


def _performance(spec: PatternSpec, field: Field, seed: int) -> str:
    gpu = field.gpu is not None
    lines = []
    for direction in ("forward", "backward"):
        case = AttentionCase(
            f"report/{spec.function}_{direction}",
            spec,
            direction=direction,
            peers=PEERS[gpu, direction],
            **_setting(spec, field),
        )
        for row in run_case(case, field, seed):
            if row["status"] != "measured":
                lines.append([direction, row["contender"], f"{row['status']}: {row['reason']}", "", "", ""])
                continue
            lines.append(
                [
                    direction,
                    row["contender"] + (f" ({row['computes']})" if row.get("computes") else ""),
                    format_seconds(row["seconds"]),
                    f"{row['gflops']:.0f}",
                    f"{row['speedup_dense']:.2f}x" if "speedup_dense" in row else "",
                    f"{row['efficiency']:.0%}" if "efficiency" in row else "",
                ]
            )
    header = ["pass", "by", "time", "GFLOP/s", "over dense", "of ideal"]
    table = format_table(header, lines)
    return "Performance\n" + "\n".join("  " + line for line in table.splitlines())


def _report(
    title: str,
    spec: PatternSpec,
    configuration: list[tuple[str, str]],
    beside: list[tuple[str, str]],
    field: Field,
    seed: int,
) -> str:
    """`beside` are sparsities of related settings."""
    pattern = spec.build()
    parts = [title, _section("Configuration", configuration)]
    if isinstance(pattern, nsa.Pattern):
        parts.append(_sparsity(pattern, beside))
    else:
        parts += [_sparsity(head, beside, f"Sparsity of head {at}") for at, head in enumerate(pattern)]
    if pattern.shape[0] <= LONGEST:
        parts.append(_performance(spec, field, seed))
    return "\n\n".join([*parts, _quality(spec.function)])


def _quality(pattern: str) -> str:
    """What the rows of the scenarios say of the pattern, whatever its setting here."""
    from reports.paper.quality import pattern_lines

    lines = pattern_lines(pattern) or [("no rows", "no scenario of reports/scenarios has run this pattern")]
    return _section("Quality in a pretrained model (rows of reports/results)", lines)


def _kind(spec: PatternSpec, field: Field) -> list[tuple[str, str]]:
    """Sizes of the calls, where they run and on which engine."""
    setting = _setting(spec, field)
    heads, head_dim, dtype = (setting[name] for name in ("heads", "head_dim", "dtype"))
    case = AttentionCase("report/plan", spec, **setting)
    own = field.own_for(case)
    plan = nsa.plan(
        spec.build(), heads=heads, head_dim=head_dim, dtype=dtype, engine=own.engine, device=own.device
    )
    place = field.gpu.facts["device"]["name"] if field.gpu is not None else "the host"
    return [("heads x head dim", f"{heads} x {head_dim}, {dtype}"), ("engine", f"{plan.engine} on {place}")]


def document_qa(field: Field, seed: int) -> str:
    """A question of 64 tokens in front of a document, 4096 tokens together."""
    spec = PatternSpec("document_qa", {"n": 4096, "question": 64, "window": 256})
    configuration = [
        ("sequence length", "4096"),
        ("question tokens", "64, which see and are seen by everything"),
        ("local window", "256 to each side"),
        ("sentence boundaries", "none"),
        *_kind(spec, field),
    ]
    past = nsa.patterns.document_qa(4096, 64, 256).causal()
    beside = [("sparsity if causal", f"{past.sparsity:.2%}")]
    return _report("Document question answering", spec, configuration, beside, field, seed)


def indentation(field: Field, seed: int) -> str:
    """A real source file, one token a line: a module of Python's own library."""
    levels = nsa.patterns.indentation_levels(inspect.getsource(argparse))
    spec = PatternSpec("indentation", {"levels": levels, "window": 32})
    configuration = [
        ("source", f"argparse of Python's library, {len(levels):,} lines"),
        ("deepest level", str(int(np.max(levels)))),
        ("local window", "32 lines to each side"),
        *_kind(spec, field),
    ]
    return _report("Code by indentation", spec, configuration, _other_modules(), field, seed)


def _other_modules() -> list[tuple[str, str]]:
    found = []
    for module in (ast, dataclasses, inspect, json.decoder, typing):
        levels = nsa.patterns.indentation_levels(inspect.getsource(module))
        found.append(
            (f"sparsity of {module.__name__}", f"{nsa.patterns.indentation(levels, 32).sparsity:.2%}")
        )
    return found


def multiscale(field: Field, seed: int) -> str:
    """An image of 256 x 256 cells with coarser levels."""
    spec = PatternSpec("multiscale_grid", {"shape": (256, 256), "levels": 3, "window": 8})
    configuration = [
        ("image", "256 x 256 cells, 3 levels, each of half the resolution"),
        ("neighborhood", "8 x 8 cells of the same level"),
        ("engine", "not run: this report stops at the sparsity"),
    ]
    beside = []
    for patch in (4, 8, 16):
        side = 256 // patch
        pattern = nsa.patterns.multiscale_grid((side, side), 3, window=8)
        beside.append((f"sparsity in patches of {patch} x {patch}", f"{pattern.sparsity:.2%}"))
    return _report("Multi-scale vision", spec, configuration, beside, field, seed)


#: Prints a setting, measured by those of a field on inputs of a seed.
Report = Callable[[Field, int], str]

REPORTS: dict[str, Report] = {
    "document_qa": document_qa,
    "indentation": indentation,
    "multiscale": multiscale,
}


def named(text: str) -> Report:
    """The report that a command line asks for; see the head of this file.

    Examples
    --------
    >>> named("document_qa").__doc__
    'A question of 64 tokens in front of a document, 4096 tokens together.'
    >>> named("sliding_window(64, 2, causal=True)").args[0].label
    'sliding_window(n=64, window=2, causal=True)'
    """
    if text in REPORTS:
        return REPORTS[text]
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a name nor a call") from None
    function = call.func if isinstance(call, ast.Call) else call
    name = function.id if isinstance(function, ast.Name) else ""
    if name not in CATALOGUE:
        known = ", ".join(sorted({*REPORTS, *CATALOGUE}))
        raise argparse.ArgumentTypeError(f"{text!r} is no pattern; there are {known}")
    entry = CATALOGUE[name]
    try:
        arguments = _arguments(entry.build, call) if isinstance(call, ast.Call) else entry.scaled(_USUAL)
        entry.build(**arguments)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error
    return functools.partial(_any_pattern, PatternSpec(name, arguments))


def _arguments(build: Callable[..., Any], call: ast.Call) -> dict[str, Any]:
    """By name, of a call whose arguments are literals."""
    given = [ast.literal_eval(argument) for argument in call.args]
    words = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.keywords}
    return dict(inspect.signature(build).bind(*given, **words).arguments)


def _any_pattern(spec: PatternSpec, field: Field, seed: int) -> str:
    pattern = spec.build()
    configuration = [("pattern", spec.label), ("sequence length", f"{pattern.shape[0]:,}")]
    if pattern.shape[0] <= LONGEST:
        configuration += _kind(spec, field)
    return _report(spec.function, spec, configuration, [], field, seed)
