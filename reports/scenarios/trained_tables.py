"""The sections of the report on embeddings, and on what was trained with a pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from reports.report_tables import markdown_table

from .comparison import Comparison, all_pairs, causal_pairs, compare, per_document, whole_seeds
from .families import DENSE
from .runs import Row
from .tables import comparison_table, density_and_family, groups, percent, points

__all__ = ["embeddings_sections", "finding", "training_sections", "vision_sections"]

#: Stretches of a curve that a table has at most; the points of one are joined to one number.
_COLUMNS = 6

#: What adjusted p-values are called small below.
_LEVEL = 0.05

_Show = Callable[[float], str]


def _plain(digits: int) -> _Show:
    return lambda value: f"{value:.{digits}f}"


def _signed(digits: int) -> _Show:
    return lambda value: f"{value:+.{digits}f}"


def _value(row: Row) -> float:
    return float(row["value"])


def finding(compared: Sequence[Comparison], *, higher_is_better: bool) -> str:
    """What a table says of every density: which families differ from dense attention, and which does best."""
    said = []
    sparse = [line for line in compared if line.family != DENSE]
    for (tokens, density), lines in _places(sparse):
        sign = 1.0 if higher_is_better else -1.0
        differing = [line for line in lines if line.p_dense is not None and line.p_dense < _LEVEL]
        better = [line.family for line in differing if sign * line.to_dense[0] > 0]
        worse = [line.family for line in differing if sign * line.to_dense[0] < 0]
        best = next(line.family for line in lines if line.best)
        behind = [line.family for line in lines if line.p_best is not None and line.p_best < _LEVEL]
        said.append(
            f"- {tokens} tokens, density {density:g}: better than dense attention {_listed(better)}; worse "
            f"{_listed(worse)}; the best is `{best}`, and behind it by more than chance {_listed(behind)}."
        )
    return "\n".join(said)


def _places(lines: Iterable[Comparison]) -> list[tuple[tuple[int, float], list[Comparison]]]:
    """By length and density, in the order of the table."""
    found: dict[tuple[int, float], list[Comparison]] = {}
    for line in lines:
        found.setdefault((line.tokens, line.density), []).append(line)
    return list(found.items())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) if names else "none"


def _compared(
    rows: Iterable[Row],
    values: Callable[[Row], Mapping[str, float]],
    what: str,
    show: tuple[_Show, _Show],
    *,
    higher_is_better: bool,
    dense_pairs: Callable[[int], float] = causal_pairs,
) -> list[str]:
    """A table of values that rows hold for every document, and what it says."""
    flat = per_document(rows, values)
    found = compare(flat, _value, higher_is_better=higher_is_better, dense_pairs=dense_pairs)
    return [comparison_table(found, what, *show), finding(found, higher_is_better=higher_is_better)]


def embeddings_sections(rows: Sequence[Row]) -> list[str]:
    """What is found, and how alike the orders are."""

    def of(kind: str, row: Row) -> Mapping[str, float]:
        return {name: measured[kind] for name, measured in row["chapters"].items()}

    titles = {
        "next": "The part that follows: mean reciprocal rank",
        "own": "A part of the same chapter: mean reciprocal rank of the most similar one",
        "agreement": "Similarities to all other parts: Spearman's correlation with those of dense attention",
    }
    parts = []
    for kind, title in titles.items():
        what = "correlation" if kind == "agreement" else "reciprocal rank"
        show = _plain(3), _signed(3)
        parts.append(f"### {title}")
        parts += _compared(rows, partial(of, kind), what, show, higher_is_better=True, dense_pairs=all_pairs)
    return parts


def vision_sections(rows: Sequence[Row]) -> list[str]:
    """Accuracy on the images that were kept from training; what it cost; how training went."""

    def hits(row: Row) -> Mapping[str, float]:
        return {f"image {at}": float(hit) for at, hit in enumerate(row["hits"])}

    whole = whole_seeds(rows)
    return [
        "The pattern is part of the model here: it is trained with it. A document is an image, and its value "
        f"the mean over the seeds {_seeds(whole)}: intervals and tests are about other images, for these "
        "models. How much models differ from seed to seed is in the second table, and may be as much as they "
        "differ from pattern to pattern. Images are small and few: this is about patterns that help a model "
        "to learn from little. Of `multiscale`, *share* counts the pairs of its pyramid as well; its 20 more "
        "tokens also cost a third more of everything else.",
        "### Accuracy",
        *_compared(whole, hits, "accuracy", (percent, points), higher_is_better=True, dense_pairs=all_pairs),
        "### Seed by seed, and the time of the CPU",
        _seed_table(whole, lambda row: row["hits"].count("1") / len(row["hits"]), percent),
        *_curve_sections(whole),
    ]


def training_sections(rows: Sequence[Row]) -> list[str]:
    """Loss on documents that were kept from training, after equal steps and equal time; how training went."""

    def of(kind: str, row: Row) -> Mapping[str, float]:
        return dict(row[kind])

    whole = whole_seeds(rows)
    show = _plain(3), _signed(3)
    return [
        "The pattern is part of the model here: it is trained with it. Losses are in nats a byte, of modules "
        f"that the model has not seen; a document's is the mean over the seeds {_seeds(whole)}, so that "
        "intervals and tests are about other documents, for these models. How much models differ from seed "
        "to seed is in the third table. Training ends long before the models have learnt what they could: "
        "this is how fast they begin to, and not what a pattern costs in the end.",
        "### Loss after the same steps",
        *_compared(whole, partial(of, "at_steps"), "loss", show, higher_is_better=False),
        "### Loss after the time that dense attention took",
        *_compared(whole, partial(of, "at_time"), "loss", show, higher_is_better=False),
        "### Seed by seed, and the time of the CPU",
        _seed_table(
            whole,
            lambda row: float(np.mean(list(row["at_steps"].values()))),
            _plain(3),
            {
                "steps in dense's time": lambda row: float(row["steps_in_time"]),
            },
        ),
        *_curve_sections(whole),
    ]


def _seeds(rows: Sequence[Row]) -> str:
    return ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))


def _seed_table(
    rows: Sequence[Row],
    measure: Callable[[Row], float],
    show: _Show,
    others: Mapping[str, Callable[[Row], float]] | None = None,
) -> str:
    """A column a seed; then means over seeds, with the least and the most."""
    seeds = sorted({row["seed"] for row in rows})
    costs: dict[str, Callable[[Row], float]] = {"seconds": lambda row: float(row["cpu_seconds"])}
    costs |= others or {}
    lines = []
    for (density, family), cell in groups(rows, density_and_family):
        by_seed = {row["seed"]: show(measure(row)) for row in cell}
        ranges = [_range([cost(row) for row in cell], _plain(0)) for cost in costs.values()]
        lines.append([f"`{family}`", f"{-density:g}", *(by_seed[seed] for seed in seeds), *ranges])
    return markdown_table(["family", "density", *(f"seed {seed}" for seed in seeds), *costs], lines)


def _range(values: Sequence[float], show: _Show) -> str:
    return f"{show(float(np.mean(values)))} ({show(min(values))} to {show(max(values))})"


def _curve_sections(rows: Sequence[Row]) -> list[str]:
    """Loss on what was trained on, and the norms of gradients, of the steps that all have."""
    if not all(row["curve"] for row in rows):
        return []
    last = min(row["curve"][-1]["step"] for row in rows)
    layers = list(rows[0]["curve"][0]["gradient_norms"])
    curve_lines, norm_lines = [], []
    edges: list[int] = []
    for (density, family), cell in groups(rows, density_and_family):
        curves = [[point for point in row["curve"] if point["step"] <= last] for row in cell]
        ends = np.linspace(0, len(curves[0]), min(_COLUMNS, len(curves[0])) + 1).astype(int).tolist()
        edges = [curves[0][end - 1]["step"] for end in ends[1:]]
        losses = np.array([[point["loss"] for point in curve] for curve in curves])
        spans = list(pairwise(ends))
        shown = [_range(losses[:, begin:end].mean(axis=1).tolist(), _plain(3)) for begin, end in spans]
        curve_lines.append([f"`{family}`", f"{-density:g}", *shown])
        norms = [
            [_norm(curves, layer, slice(*spans[at])) for at in sorted({0, len(spans) - 1})]
            for layer in layers
        ]
        norm_lines.append([f"`{family}`", f"{-density:g}", *(" → ".join(layer) for layer in norms)])
    titles = [f"to step {edge}" for edge in edges]
    return [
        "### Loss curves",
        "Mean loss on the batches of a stretch of steps: mean over seeds, with the least and the most.",
        markdown_table(["family", "density", *titles], curve_lines),
        "### Gradient norms by layer",
        "Before they are cut to a norm of 1 all together: mean over seeds and points of the curve, of the "
        "first stretch of steps → of the last.",
        markdown_table(["family", "density", *(f"`{layer}`" for layer in layers)], norm_lines),
    ]


def _norm(curves: Sequence[Sequence[dict[str, Any]]], layer: str, points: slice) -> str:
    return f"{np.mean([point['gradient_norms'][layer] for curve in curves for point in curve[points]]):.3f}"
