"""Embeddings: whether parts of a document still find one another, by a pretrained encoder with every pattern.

    python -m reports.scenarios.embeddings [--quick]

Every chapter is cut into parts of one length. A part's next one, and the parts of its own chapter, are looked
for among the parts of all chapters, the most similar first; and the order of all parts is compared with the
one that dense attention gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from . import documents
from .bert import Embedder, load_embedder
from .documents import Document
from .families import DENSE
from .options import cells, parse_options
from .runs import Job, Results, Row, run_missing
from .two_sided import TWO_SIDED_FAMILIES, make_two_sided

__all__ = ["DENSITIES", "FAMILIES", "LENGTHS", "PARTS", "Parts", "found_next", "found_own", "run"]

FAMILIES = tuple(name for name in TWO_SIDED_FAMILIES if name != DENSE)
#: Tokens of a part, those that begin and end it included.
LENGTHS = (256, 512)
#: Parts of a chapter.
PARTS = 6
DENSITIES = (0.25, 0.125)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Parts:
    """All parts of all chapters, chapter behind chapter.

    Parameters
    ----------
    names : sequence of str
        Of the chapters.
    sequences : int array (chapters * PARTS, tokens)
    """

    names: Sequence[str]
    sequences: npt.NDArray[np.int64]

    @classmethod
    def of(cls, embedder: Embedder, chapters: Sequence[Document], length: int) -> Parts:
        """Cut chapters of ``PARTS * (length - 2)`` tokens."""
        tokens = np.concatenate([chapter.tokens for chapter in chapters]).reshape(-1, length - 2)
        edge = np.ones((len(tokens), 1), np.int64)
        ends = embedder.tokenizer.first * edge, embedder.tokenizer.last * edge
        return cls([chapter.name for chapter in chapters], np.hstack([ends[0], tokens, ends[1]]))

    @property
    def digest(self) -> str:
        """Tells these parts from others."""
        return hashlib.sha256(self.sequences.astype("<i8").tobytes()).hexdigest()[:16]


def _similarities(embedder: Embedder, parts: Parts, family: str, density: float, seed: int) -> Floats:
    """Cosines between all parts; none is similar to itself."""
    pattern = make_two_sided(family, parts.sequences.shape[1], density, seed)
    vectors = embedder.model.embed(parts.sequences, pattern).astype(np.float64)
    found = vectors @ vectors.T
    np.fill_diagonal(found, -np.inf)
    return found


def _reciprocal_rank(similarities: Floats, wanted: npt.NDArray[np.bool_]) -> Floats:
    """1 over the place of the best of those that are wanted, row by row."""
    best = np.where(wanted, similarities, -np.inf).max(axis=1, keepdims=True)
    return 1.0 / (1 + (similarities > best).sum(axis=1))


def found_next(similarities: Floats) -> Floats:
    """Reciprocal ranks of the part that follows: a row a chapter, a column each of its parts but the last."""
    count = len(similarities)
    following = np.eye(count, k=1, dtype=bool)
    return _reciprocal_rank(similarities, following).reshape(-1, PARTS)[:, :-1]


def found_own(similarities: Floats) -> Floats:
    """Reciprocal ranks of the most similar part of the same chapter: a row a chapter, a column a part."""
    chapter = np.arange(len(similarities)) // PARTS
    own = (chapter[:, None] == chapter) & ~np.eye(len(similarities), dtype=bool)
    return _reciprocal_rank(similarities, own).reshape(-1, PARTS)


def _agreement(similarities: Floats, yardstick: Floats) -> Floats:
    """Spearman's correlation of the similarities of every part to all others."""
    others = ~np.eye(len(similarities), dtype=bool)
    found = [
        stats.spearmanr(own[kept], dense[kept]).statistic
        for own, dense, kept in zip(similarities, yardstick, others, strict=True)
    ]
    return np.array(found).reshape(-1, PARTS)


def _measure(embedder: Embedder, parts: Parts, dense: Callable[[], Floats], cell: Row) -> Row:
    length = parts.sequences.shape[1]
    is_dense = cell["family"] == DENSE
    own = (
        dense() if is_dense else _similarities(embedder, parts, cell["family"], cell["density"], cell["seed"])
    )
    measured = {"next": found_next(own), "own": found_own(own), "agreement": _agreement(own, dense())}
    return {
        "pairs": make_two_sided(cell["family"], length, cell["density"], cell["seed"]).nnz,
        "chapters": {
            name: {kind: round(float(values[at].mean()), 5) for kind, values in measured.items()}
            for at, name in enumerate(parts.names)
        },
    }


def run(arguments: Sequence[str] | None = None) -> Path:
    """Measure what the command line asks for and is not there yet; returns the results file."""
    options = parse_options(
        "embeddings",
        FAMILIES,
        LENGTHS,
        arguments,
        densities=DENSITIES,
        source=(
            "--model",
            "a folder with config.json, model.safetensors and vocab.txt, in place of the package's",
        ),
        quick={"lengths": [64], "documents": 4},
    )
    embedder = load_embedder(options.model)
    results = Results(options.output, "embeddings", embedder.facts)
    jobs: list[Job] = []
    for length in options.lengths:
        chapters = documents.language(embedder.tokenizer, PARTS * (length - 2))[: options.documents]
        parts = Parts.of(embedder, chapters, length)
        # Every other pattern is compared with it, and it may have been run before.
        dense = cache(partial(_similarities, embedder, parts, DENSE, 1.0, 0))
        for cell in cells(options):
            key = {"tokens": length, "documents": len(chapters), "digest": parts.digest, **cell}
            work = partial(_measure, embedder, parts, dense, cell)
            jobs.append(Job(key, length * len(parts.sequences), work))
    run_missing(jobs, results)
    return Path(options.output)


if __name__ == "__main__":
    run()
