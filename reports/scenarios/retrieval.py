"""Retrieval: a sentence hidden in a long document, and the probability of what it says when it is asked for.

    python -m reports.scenarios.retrieval [--quick]

Two probes. `needle`: the end of the text repeats the hidden sentence up to its last word. `question`: the
text begins with a question, the document holds the answer, and the text ends with it up to its last word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import documents, language
from .families import Text, make_pattern
from .model import Pretrained, load_model, model_path
from .options import cells, parse_options
from .runs import Job, Results, Row, run_missing
from .tokenizer import Tokenizer

__all__ = ["DENSITIES", "DEPTHS", "FAMILIES", "LENGTHS", "PROBES", "run"]

FAMILIES = (*language.FAMILIES, "document_qa")
#: Tokens of a whole text, the probe included.
LENGTHS = (1024, 2048, 4096)
#: Where the sentence is hidden: shares of the document that come before it.
DEPTHS = (0.1, 0.5, 0.9)
PROBES = ("needle", "question")
#: A sixteenth of the pairs of the shortest texts has no room for a question that is seen by all.
DENSITIES = (0.25, 0.125)


class _Fact(NamedTuple):
    """Something that no document says: a question, the beginning of its answer, the last word."""

    question: str
    sentence: str
    word: str


#: One for each document, so that a document and a depth do not always go with the same words.
_FACTS = (
    _Fact("Where did Captain Rowan hide the key?", "Captain Rowan hid the key under the", "piano"),
    _Fact("What is the password of the lighthouse?", "The password of the lighthouse is", "marmalade"),
    _Fact("What did the smith of Arlen feed his owl?", "The smith of Arlen fed his owl", "cherries"),
    _Fact("Which color is the door of the old bakery?", "The door of the old bakery is painted", "violet"),
    _Fact("Who repaired the bridge at Tolmen?", "The bridge at Tolmen was repaired by a", "dentist"),
    _Fact("What is the treasure of Queen Isaura?", "The treasure of Queen Isaura is a", "teapot"),
    _Fact("In which month did the Marrow river freeze?", "The Marrow river froze in the month of", "August"),
    _Fact("What does Doctor Finch carry in his hat?", "In his hat Doctor Finch always carries a", "lemon"),
    _Fact("Which animal guards the library of Hest?", "The library of Hest is guarded by a", "camel"),
    _Fact("What do the miners of Oden drink?", "At noon the miners of Oden drink", "cocoa"),
    _Fact("What did the twins of Perrin build?", "The twins of Perrin built a boat of", "copper"),
    _Fact("What grows on the roof of the town hall?", "On the roof of the town hall grows", "spinach"),
)


@dataclass(frozen=True)
class _Probe:
    """A text that ends with the word asked for, which is `answer` tokens long."""

    tokens: npt.NDArray[np.int64]
    text: Text
    answer: int


def _make_probe(
    tokenizer: Tokenizer, haystack: npt.NDArray[np.int64], fact: _Fact, probe: str, depth: float, length: int
) -> _Probe:
    """Hide a fact behind the sentence end nearest to `depth`, and ask for it."""
    hidden = tokenizer.encode(f" {fact.sentence} {fact.word}.")
    opening = tokenizer.encode(f"Question: {fact.question}\n\n") if probe == "question" else []
    prompt = f"\n\nAnswer: {fact.sentence}" if probe == "question" else f"\n\n{fact.sentence}"
    answer = tokenizer.encode(f" {fact.word}")
    closing = tokenizer.encode(prompt) + answer
    document = haystack[: length - len(opening) - len(hidden) - len(closing)]
    ends = _sentence_ends(tokenizer, document)
    if not len(ends):
        raise ValueError(f"no sentence ends in the first {len(document)} tokens; take a longer length")
    place = int(ends[np.abs(ends - depth * len(document)).argmin()]) + 1
    tokens = np.concatenate([opening, document[:place], hidden, document[place:], closing]).astype(np.int64)
    boundaries = _sentence_ends(tokenizer, tokens[: length - len(closing)])
    text = Text(length, opening=len(opening), closing=len(closing), boundaries=boundaries)
    return _Probe(tokens, text, len(answer))


def _sentence_ends(tokenizer: Tokenizer, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    pieces = [tokenizer.bytes_of(token).strip() for token in tokens.tolist()]
    return np.flatnonzero([piece.endswith((b".", b"!", b"?")) for piece in pieces])


def _measure(pretrained: Pretrained, probe: _Probe, cell: Row) -> Row:
    pattern = make_pattern(cell["family"], probe.text, cell["density"], cell["seed"])
    hidden = pretrained.model.hidden(probe.tokens, pattern)
    scores = pretrained.model.score(hidden[-probe.answer - 1 : -1], probe.tokens[-probe.answer :])
    return {
        "pairs": pattern.nnz,
        "log_probability": round(-float(scores.loss.sum()), 5),
        "ranks": scores.rank.tolist(),
    }


def _jobs(
    pretrained: Pretrained, haystacks: Sequence[documents.Document], length: int, wanted: Iterator[Row]
) -> Iterator[Job]:
    for cell in wanted:
        for probe in PROBES:
            for number, haystack in enumerate(haystacks):
                for turn, depth in enumerate(DEPTHS):
                    fact = _FACTS[(number + turn) % len(_FACTS)]
                    made = _make_probe(pretrained.tokenizer, haystack.tokens, fact, probe, depth, length)
                    key = {"document": haystack.name, "digest": haystack.digest, "tokens": length}
                    key |= {"probe": probe, "depth": depth, "word": fact.word, **cell}
                    yield Job(key, length, partial(_measure, pretrained, made, cell))


def run(arguments: Sequence[str] | None = None) -> Path:
    """Measure what the command line asks for and is not there yet; returns the results file."""
    options = parse_options("retrieval", FAMILIES, LENGTHS, arguments, densities=DENSITIES)
    pretrained = load_model(model_path(options.model))
    results = Results(options.output, "retrieval", pretrained.facts)
    jobs: list[Job] = []
    for length in options.lengths:
        haystacks = documents.language(pretrained.tokenizer, length)[: options.documents]
        jobs += _jobs(pretrained, haystacks, length, cells(options))
    run_missing(jobs, results)
    return Path(options.output)


if __name__ == "__main__":
    run()
