"""Source code: perplexity and next-token accuracy, overall and where the indentation changes.

python -m reports.scenarios.code [--quick]
"""

from __future__ import annotations

import numpy as np

from numba_sparse_attn import patterns

from . import documents, language
from .documents import Document
from .families import Lines
from .perplexity import Scenario
from .tokenizer import Tokenizer

__all__ = ["FAMILIES", "SCENARIO", "lines_of"]


def lines_of(tokenizer: Tokenizer, document: Document) -> Lines:
    """Lines of a document: their levels of indentation and their tokens.

    A token belongs to the line of its last byte. White space is cut before its last space, so the token that
    ends a line is also the one that says how deep the next one is. It counts to the next one: predicting it
    is predicting the scope.
    """
    pieces = [tokenizer.bytes_of(token) for token in document.tokens.tolist()]
    # Cut in the middle of a character, the last token may be no text of its own.
    levels = patterns.indentation_levels(b"".join(pieces).decode("utf-8", "replace"))
    newlines = np.cumsum([piece.count(b"\n") for piece in pieces])
    ended_by = np.array([piece.endswith(b"\n") for piece in pieces])
    return Lines(levels, np.bincount(newlines - ended_by, minlength=len(levels)))


FAMILIES = (
    *language.FAMILIES,
    "indentation",
    "sink_indentation",
    "outline",
    "outline_without_siblings",
    "outline_without_landmarks",
)

SCENARIO = Scenario("code", documents.code, FAMILIES, (2048,), lines=lines_of)

if __name__ == "__main__":
    SCENARIO.run()
