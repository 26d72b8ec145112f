"""Learned block patterns on the queries and keys of a pretrained model: how much attention a budget keeps.

    python -m reports.scenarios.learned [--quick]
    python -m reports.scenarios.learned --report     write learned.md from the rows
    python -m reports.scenarios.learned --check      change nothing; status 1 if the text is stale

A predictor a layer learns from a third of the chapters of the language reference; the others are what it is
measured on. The model itself runs with dense attention: a row is about what a pattern would have kept of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import numba_sparse_attn as nsa
from numba_sparse_attn import dynamic, patterns
from reports.report_tables import markdown_table

from . import documents
from .comparison import bootstrap_interval, causal_pairs, holm, paired_p
from .documents import Document
from .families import Text, make_pattern
from .model import Pretrained, load_model, model_path
from .runs import RESULTS, Job, Results, Row, run_missing
from .tables import interval, p_value, percent, points

__all__ = ["FAMILIES", "REPORT", "main", "report_text"]

REPORT = RESULTS.parent / "learned.md"
ROWS = RESULTS / "learned.json"

Floats = npt.NDArray[np.floating[Any]]

#: Tokens of a document and keys in a block.
LENGTH, _BLOCK = 4096, 32
#: One of so many documents is learned from.
_EVERY = 3
#: Blocks of keys for every block of queries; the pairs that this makes are the budget of all families.
_BUDGETS = (4, 8, 16)

#: What a query sees of the others, by the family's name.
FAMILIES = {
    "learned_share": "Blocks by the masses that the predictor expects; the queries of a head share a budget.",
    "learned": "As `learned_share`, as many blocks for every block of queries.",
    "block_top_k": "Blocks by the product of the means of queries and keys: where the predictor begins.",
    "quest": "Blocks by the largest score that a key in them could have; every query chooses for itself.",
    "sliding_window": "The latest keys.",
    "sink_window": "The first four tokens and the latest keys.",
    "random": "Random blocks: what is expected of them, without a draw.",
    "oracle": "The blocks with the largest masses: as good as the choice of `learned` can get.",
    "oracle_share": "The same of `learned_share`.",
}
_WINDOWS = {"sliding_window": "window", "sink_window": "sink_window"}


class _Predictors:
    """One for every layer, trained when the first document is to be measured; that takes 2 GB for a while."""

    def __init__(self, pretrained: Pretrained, chapters: Sequence[Document]) -> None:
        self._pretrained, self._chapters = pretrained, chapters

    @cached_property
    def by_layer(self) -> list[dynamic.BlockPredictor]:
        model = self._pretrained.model
        made = [
            dynamic.BlockPredictor.create(model.head_dim, _BLOCK, heads=model.heads) for _ in model.layers
        ]
        lessons: list[list[Any]] = [[] for _ in made]

        def watch(layer: int, q: Floats, k: Floats) -> None:
            lessons[layer] += made[layer].lessons(q, k, causal=True)

        for chapter in self._chapters:
            model.hidden(chapter.tokens, patterns.causal(len(chapter.tokens)), watch=watch)
        for predictor, own in zip(made, lessons, strict=True):
            predictor.fit(own)
            own.clear()
        return made


def _pairs(length: int, budget: int) -> int:
    """Of `budget` blocks of keys for every block of queries, its own among them: a triangle and squares."""
    row = np.arange(length // _BLOCK)
    own = len(row) * _BLOCK * (_BLOCK + 1) // 2
    return own + int(np.minimum(row, budget - 1).sum()) * _BLOCK**2


def _kept(q: Floats, k: Floats, dense: Floats, pattern: Any) -> float:
    """Share of the mass of dense attention that lies in a pattern: a ratio of the sums of exp(score)."""
    _, lse = nsa.sparse_attention(q, k, k[..., :1], pattern, return_lse=True)
    return float(np.exp(lse.astype(np.float64) - dense).mean())


def _best(masses: Floats, budget: int, *, shared: bool) -> float:
    """What the blocks with the largest masses keep, the queries' own always among them."""
    rows = masses.shape[-1]
    others = np.tril(masses, -1)
    room = np.minimum(np.arange(rows), budget - 1)
    own = np.trace(masses, axis1=1, axis2=2)
    if shared:
        ranked = -np.sort(-others.reshape(len(masses), -1), axis=1)
        found = ranked[:, : room.sum()].sum(axis=1)
    else:
        ranked = -np.sort(-others, axis=2)
        found = np.where(np.arange(rows) < room[:, None], ranked, 0.0).sum(axis=(1, 2))
    return float(((own + found) / rows).mean())


def _expected(masses: Floats, budget: int) -> float:
    """What random blocks keep on average, the queries' own always among them."""
    row = np.arange(masses.shape[-1])
    chance = np.minimum(row, budget - 1) / np.maximum(row, 1)
    own = np.diagonal(masses, axis1=1, axis2=2)
    return float((own + chance * np.tril(masses, -1).sum(axis=2)).mean())


def _of_layer(predictor: dynamic.BlockPredictor, q: Floats, k: Floats) -> dict[str, list[float]]:
    """Recall of every family, one entry a budget, means over heads and queries."""
    length = q.shape[-2]
    causal = patterns.causal(length)
    _, dense = nsa.sparse_attention(q, k, k[..., :1], causal, return_lse=True)
    dense = dense.astype(np.float64)
    masses = dynamic.block_masses(q, k, _BLOCK, causal=True)
    found: dict[str, list[float]] = {family: [] for family in FAMILIES}
    for budget in _BUDGETS:
        pairs = _pairs(length, budget)
        # Half a pair more, so that no rounding of the quotient costs a block.
        share = min((pairs + 0.5) / causal.nnz, 1.0)
        chosen = {
            "learned_share": dynamic.learned_blocks(q, k, predictor, None, share=share, causal=True),
            "learned": dynamic.learned_blocks(q, k, predictor, budget, causal=True),
            "block_top_k": dynamic.block_top_k(q, k, budget, _BLOCK, causal=True),
            "quest": dynamic.quest(q, k, budget, _BLOCK, causal=True),
            **{name: make_pattern(own, Text(length), share, 0) for name, own in _WINDOWS.items()},
        }
        for family, pattern in chosen.items():
            heads = len(q) if isinstance(pattern, nsa.HeadPatterns) else 1
            if pattern.nnz > heads * pairs:
                raise AssertionError(f"{family} has {pattern.nnz} pairs, the budget is {heads * pairs}")
            found[family].append(_kept(q, k, dense, pattern))
        found["random"].append(_expected(masses, budget))
        found["oracle"].append(_best(masses, budget, shared=False))
        found["oracle_share"].append(_best(masses, budget, shared=True))
    return found


def _measure(pretrained: Pretrained, predictors: _Predictors, document: Document) -> Row:
    layers: list[dict[str, list[float]]] = []
    of_layer = predictors.by_layer

    def watch(layer: int, q: Floats, k: Floats) -> None:
        layers.append(_of_layer(of_layer[layer], q, k))

    length = len(document.tokens)
    pretrained.model.hidden(document.tokens, patterns.causal(length), watch=watch)
    recall = {
        family: [[round(layer[family][at], 5) for layer in layers] for at in range(len(_BUDGETS))]
        for family in FAMILIES
    }
    return {"pairs": [_pairs(length, budget) for budget in _BUDGETS], "recall": recall}


def _jobs(pretrained: Pretrained, length: int, count: int | None) -> Iterator[Job]:
    """A document each; with a `count`, so many documents are learned from and so many are measured."""
    chapters = documents.language(pretrained.tokenizer, length)
    learned_from = chapters[::_EVERY][:count]
    held_out = [chapter for at, chapter in enumerate(chapters) if at % _EVERY][:count]
    predictors = _Predictors(pretrained, learned_from)
    for chapter in held_out:
        key = {"document": chapter.name, "digest": chapter.digest, "tokens": length, "block": _BLOCK}
        key["chapters"] = [one.name for one in learned_from]
        yield Job(key, length, partial(_measure, pretrained, predictors, chapter))


def _recall(rows: Sequence[Row], family: str, at: int) -> Floats:
    """``[documents, layers]`` for one budget."""
    return np.array([row["recall"][family][at] for row in rows])


def _tables(rows: Sequence[Row]) -> list[str]:
    """Recall by family for every budget, beside `learned`; and by layer for the one in the middle."""
    differences = {
        (at, family): (_recall(rows, family, at).mean(axis=1), _recall(rows, "learned", at).mean(axis=1))
        for at in range(len(_BUDGETS))
        for family in FAMILIES
        if family != "learned"
    }
    adjusted = dict(zip(differences, holm([paired_p(*pair) for pair in differences.values()]), strict=True))
    tokens = rows[0]["tokens"]
    parts = []
    for at, pairs in enumerate(rows[0]["pairs"]):
        found = {family: _recall(rows, family, at).mean(axis=1) for family in FAMILIES}
        best = found["oracle"].mean()
        lines = []
        for family in sorted(found, key=lambda family: -found[family].mean()):
            own = found[family]
            line = [f"`{family}`", interval(bootstrap_interval(own), percent), percent(own.mean() / best)]
            if family == "learned":
                line += ["", ""]
            else:
                beside = bootstrap_interval(own - found["learned"])
                line += [interval(beside, points), p_value(adjusted[at, family])]
            lines.append(line)
        share = percent(pairs / causal_pairs(tokens))
        header = ["family", "recall", "of the oracle's", "beside `learned`, in points", "p"]
        parts += [f"## {share} of the pairs: {_BUDGETS[at]} blocks", markdown_table(header, lines)]
    middle = len(_BUDGETS) // 2
    by_layer = {family: _recall(rows, family, middle).mean(axis=0) for family in FAMILIES}
    lines = [
        [str(layer), *(percent(one) for one in values)]
        for layer, values in enumerate(zip(*by_layer.values(), strict=True))
    ]
    header = ["layer", *(f"`{family}`" for family in by_layer)]
    return [*parts, f"## By layer, with {_BUDGETS[middle]} blocks", markdown_table(header, lines)]


def report_text(path: Path = ROWS) -> str:
    """The page, from the rows."""
    content = json.loads(path.read_text("utf-8"))
    rows = content["rows"]
    chapters = ", ".join(f"`{name}`" for name in rows[0]["chapters"])
    measured = ", ".join(f"`{row['document']}`" for row in rows)
    commits = ", ".join(sorted({run["commit"] for run in content["runs"]}))
    parts = [
        "# Learned block patterns",
        "Made by `python -m reports.scenarios.learned --report` from `results/learned.json`; do not edit. "
        f"Queries and keys are those of {content['model']['name']}, which reads {rows[0]['tokens']:,} tokens "
        "with dense attention; recall is the share of its mass that lies in a pattern, a mean over queries, "
        "heads and layers. A predictor a layer (`numba_sparse_attn.dynamic.BlockPredictor`, blocks of "
        f"{rows[0]['block']}) has learned from {chapters}. It is measured on others: {measured}.",
        "All families have the same budget of pairs, and use all of it but for a part of a block or of a "
        "window's step. Brackets hold 95 % bootstrap intervals of the mean over documents; p-values are of "
        "two-sided permutation tests of equal recall, documents paired, adjusted by Holm for all tests of "
        f"the page: of {len(rows)} documents none can be smaller than 2 / 2^{len(rows)} times the number of "
        f"tests. Commits {commits}.",
        "What a query sees besides its own block:",
        "\n".join(f"- `{family}`: {what}" for family, what in FAMILIES.items()),
        *_tables(rows),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reports.scenarios.learned")
    add = parser.add_argument
    add("--quick", action="store_true", help="two short documents to learn from, two to measure")
    add("--model", type=Path, help="a GGUF file in place of the installed package's")
    add("--output", type=Path, help="results file")
    add("--report", action="store_true", help="write the page")
    add("--check", action="store_true", help="change nothing; fail if the page is stale")
    options = parser.parse_args(arguments)
    if options.check:
        return int(REPORT.read_text("utf-8") != report_text())
    if options.report:
        REPORT.write_text(report_text(), "utf-8")
        return 0
    pretrained = load_model(model_path(options.model))
    usual = RESULTS / "quick" / ROWS.name if options.quick else ROWS
    results = Results(options.output or usual, "learned", pretrained.facts)
    run_missing(list(_jobs(pretrained, *((1024, 2) if options.quick else (LENGTH, None)))), results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
