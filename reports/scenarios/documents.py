"""The documents: long texts in this folder, and modules of the standard library."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .tokenizer import Tokenizer

__all__ = ["Document", "code", "language"]

#: Where each of them comes from, and that it may be copied, is in SOURCES.md beside them.
_FOLDER = Path(__file__).resolve().parent / "documents"

#: Modules of one file in every supported Python, of several kinds and authors.
_MODULES = (
    "argparse",
    "ast",
    "calendar",
    "configparser",
    "dataclasses",
    "difflib",
    "fractions",
    "functools",
    "heapq",
    "inspect",
    "statistics",
    "subprocess",
)

#: Where a definition at the outermost level begins.
_DEFINITION = re.compile(r"^(?:def|class) ", re.MULTILINE)


@dataclass(frozen=True)
class Document:
    """The first tokens of a text."""

    name: str
    tokens: npt.NDArray[np.int64]

    @property
    def digest(self) -> str:
        """Tells this text from another version of it."""
        return hashlib.sha256(self.tokens.astype("<i8").tobytes()).hexdigest()[:16]


def language(tokenizer: Tokenizer, length: int) -> list[Document]:
    """Books and essays, `length` tokens each."""
    paths = sorted(_FOLDER.glob("*.txt"))
    return [_document(path.stem, path.read_text("utf-8"), tokenizer, length) for path in paths]


def code(tokenizer: Tokenizer, length: int) -> list[Document]:
    """Modules of the running interpreter's standard library, `length` tokens each.

    They begin with the function or class nearest to a quarter of the module: heads are prose and imports.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    found = []
    for name in _MODULES:
        text = (folder / f"{name}.py").read_text("utf-8")
        begins = [match.start() for match in _DEFINITION.finditer(text)]
        begin = min(begins, key=lambda place: abs(place - len(text) // 4))
        found.append(_document(name, text[begin:], tokenizer, length))
    return found


def _document(name: str, text: str, tokenizer: Tokenizer, length: int) -> Document:
    tokens = tokenizer.encode(text)
    if len(tokens) < length:
        raise ValueError(f"{name} has {len(tokens)} tokens, fewer than {length}; take a shorter length")
    return Document(name, np.array(tokens[:length]))
