"""The documents: what every Python carries. Chapters of its language reference, and modules of its library.

A model trained on text of the web has seen both; what is compared is one attention with another on the same
text, not the model with other models. Both change from one Python to the next: rows carry a digest.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Document", "Encoder", "code", "language", "training_code"]

#: Characters that a chapter has at least; shorter topics are joined until they have as many.
_CHAPTER = 20_000

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


class Encoder(Protocol):
    """A tokenizer, as far as it is needed here."""

    def encode(self, text: str) -> list[int]:
        """Text to token numbers."""


@dataclass(frozen=True)
class Document:
    """The first tokens of a text."""

    name: str
    tokens: npt.NDArray[np.int64]

    @property
    def digest(self) -> str:
        """Tells this text from another version of it."""
        return hashlib.sha256(self.tokens.astype("<i8").tobytes()).hexdigest()[:16]


def language(tokenizer: Encoder, length: int) -> list[Document]:
    """Chapters of the language reference, `length` tokens each, as ``pydoc`` has them.

    The long topics one by one, then the others, joined in the order of their names.
    """
    chapters = {name: text for name, text in topics.items() if len(text) >= _CHAPTER}
    joined: list[str] = []
    first = ""
    for name in sorted(topics.keys() - chapters.keys()):
        first = first or name
        joined.append(topics[name])
        if sum(map(len, joined)) >= _CHAPTER:
            chapters[f"{first}_to_{name}"] = "\n\n".join(joined)
            joined, first = [], ""
    return [_document(name, text, tokenizer, length) for name, text in sorted(chapters.items())]


def code(tokenizer: Encoder, length: int) -> list[Document]:
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


def training_code() -> bytes:
    """All other modules of one file, one after the other."""
    folder = Path(sysconfig.get_path("stdlib"))
    others = (path for path in sorted(folder.glob("*.py")) if path.stem not in _MODULES)
    return b"\n".join(path.read_bytes() for path in others)


def _document(name: str, text: str, tokenizer: Encoder, length: int) -> Document:
    tokens = tokenizer.encode(text)
    if len(tokens) < length:
        raise ValueError(f"{name} has {len(tokens)} tokens, fewer than {length}; take a shorter length")
    return Document(name, np.array(tokens[:length]))
