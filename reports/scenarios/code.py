"""Source code: perplexity and next-token accuracy, overall and where the indentation changes.

python -m reports.scenarios.code [--quick]
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from numba_sparse_attn import patterns

from . import documents, language
from .documents import Document
from .perplexity import Scenario
from .tokenizer import Tokenizer

__all__ = ["FAMILIES", "SCENARIO", "token_levels"]


def token_levels(tokenizer: Tokenizer, document: Document) -> npt.NDArray[np.int64]:
    """Level of indentation of every token: that of the line of its last byte.

    White space is cut before its last space, so the token that ends a line is also the one that says how
    deep the next one is. It counts to the next one: predicting it is predicting the scope.
    """
    pieces = [tokenizer.bytes_of(token) for token in document.tokens.tolist()]
    # Cut in the middle of a character, the last token may be no text of its own.
    lines = patterns.indentation_levels(b"".join(pieces).decode("utf-8", "replace"))
    newlines = np.cumsum([piece.count(b"\n") for piece in pieces])
    ended_by = np.array([piece.endswith(b"\n") for piece in pieces])
    return lines[newlines - ended_by]


FAMILIES = (*language.FAMILIES, "indentation", "sink_indentation")

SCENARIO = Scenario("code", documents.code, FAMILIES, (2048,), levels=token_levels)

if __name__ == "__main__":
    SCENARIO.run()
