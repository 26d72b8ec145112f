"""The documents: long texts in this folder, and modules of the standard library."""

from __future__ import annotations

import hashlib
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
    return [_document(path, tokenizer, length) for path in sorted(_FOLDER.glob("*.txt"))]


def code(tokenizer: Tokenizer, length: int) -> list[Document]:
    """Modules of the running interpreter's standard library, `length` tokens each."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [_document(folder / f"{name}.py", tokenizer, length) for name in _MODULES]


def _document(path: Path, tokenizer: Tokenizer, length: int) -> Document:
    tokens = tokenizer.encode(path.read_text("utf-8"))
    if len(tokens) < length:
        raise ValueError(f"{path.name} has {len(tokens)} tokens, fewer than {length}; take a shorter length")
    return Document(path.stem, np.array(tokens[:length]))
