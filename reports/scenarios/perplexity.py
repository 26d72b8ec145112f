"""What `language` and `code` share: how well every next token is predicted, pattern by pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .documents import Document
from .families import Lines, Text, make_pattern
from .llama import Scores
from .model import Pretrained, load_model, model_path
from .options import cells, parse_options
from .runs import Job, Results, Row, run_missing
from .tokenizer import Tokenizer

__all__ = ["BUCKET", "Scenario"]

#: Positions that are summed into one entry of a row.
BUCKET = 256


@dataclass(frozen=True)
class Scenario:
    """What is read, and by which patterns.

    Parameters
    ----------
    name : str
        Of the results file, too.
    documents : function of a tokenizer and a length
    families : sequence of str
        Besides dense attention.
    lengths : sequence of int
        Tokens of a document, one after the other.
    lines : function of a tokenizer and a document, optional
        Of code. Tokens with which the level of indentation changes are also summed on their own.
    """

    name: str
    documents: Callable[[Tokenizer, int], list[Document]]
    families: Sequence[str]
    lengths: Sequence[int]
    lines: Callable[[Tokenizer, Document], Lines] | None = None

    def run(self, arguments: Sequence[str] | None = None) -> Path:
        """Measure what the command line asks for and is not there yet; returns the results file."""
        options = parse_options(self.name, self.families, self.lengths, arguments)
        pretrained = load_model(model_path(options.model))
        results = Results(options.output, self.name, pretrained.facts)
        jobs: list[Job] = []
        for length in options.lengths:
            documents = self.documents(pretrained.tokenizer, length)[: options.documents]
            jobs += self._jobs(pretrained, documents, cells(options))
        run_missing(jobs, results)
        return Path(options.output)

    def _jobs(
        self, pretrained: Pretrained, documents: Sequence[Document], wanted: Iterator[Row]
    ) -> Iterator[Job]:
        for cell in wanted:
            for document in documents:
                count = len(document.tokens)
                key = {"document": document.name, "digest": document.digest, "tokens": count, **cell}
                yield Job(key, count, partial(self._measure, pretrained, document, cell))

    def _measure(self, pretrained: Pretrained, document: Document, cell: Row) -> Row:
        tokens = document.tokens
        lines = None if self.lines is None else self.lines(pretrained.tokenizer, document)
        pattern = make_pattern(cell["family"], Text(len(tokens), lines), cell["density"], cell["seed"])
        hidden = pretrained.model.hidden(tokens, pattern)
        scores = pretrained.model.score(hidden[:-1], tokens[1:])
        buckets = np.arange(1, len(tokens)) // BUCKET
        row: Row = {"pairs": pattern.nnz, "positions": _sums(scores, buckets)}
        if lines is not None:
            levels = lines.token_levels
            changes = (levels[1:] != levels[:-1]).astype(np.int64)
            row["changes"] = {name: entries[1] for name, entries in _sums(scores, changes, 2).items()}
        return row


def _sums(scores: Scores, groups: npt.NDArray[np.int64], count: int = 0) -> dict[str, list[float]]:
    """Losses in nats, hits and tokens, summed by group; `count` groups if there are not more."""
    hits = (scores.rank == 0).astype(np.float64)
    return {
        "loss": np.bincount(groups, scores.loss, count).round(4).tolist(),
        "hits": np.bincount(groups, hits, count).astype(int).tolist(),
        "count": np.bincount(groups, minlength=count).tolist(),
    }
