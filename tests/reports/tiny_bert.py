"""A folder with a random encoder of a few kilobytes, in the files that a published one has."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

WIDTH, INNER, HEADS, LAYERS, CONTEXT = 32, 48, 4, 2, 128

#: Every letter and every mark of ASCII, first and inside of a word; and a few longer pieces.
MARKS = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *MARKS,
    *(f"##{mark}" for mark in MARKS if mark.isalnum()),
    "the",
    "under",
    "##stand",
    "##standing",
]

_STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


def shapes() -> dict[str, tuple[int, ...]]:
    """Of all tensors, by the names that published models give them."""
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), WIDTH),
        "embeddings.position_embeddings.weight": (CONTEXT, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
        "pooler.dense.weight": (WIDTH, WIDTH),
    }
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            found |= _dense(f"{at}attention.self.{name}", WIDTH, WIDTH)
        found |= _dense(f"{at}attention.output.dense", WIDTH, WIDTH)
        found |= _dense(f"{at}intermediate.dense", INNER, WIDTH)
        found |= _dense(f"{at}output.dense", WIDTH, INNER)
        for name in ("attention.output", "output"):
            found |= {f"{at}{name}.LayerNorm.{part}": (WIDTH,) for part in ("weight", "bias")}
    return found


def _dense(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def write(
    folder: Path, *, prefix: str = "", stored: str = "F32", config: dict[str, Any] | None = None
) -> None:
    """Write the model; the tensors are random."""
    rng = np.random.default_rng(0)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, shape in shapes().items():
        values = rng.standard_normal(shape) * (1.0 if len(shape) == 1 else 2.0 / np.sqrt(shape[1]))
        data = values.astype(_STORED[stored]).tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[prefix + name] = {"dtype": stored, "shape": list(shape), "data_offsets": offsets}
        body += data
    write_tensors(folder / "model.safetensors", header, body)
    facts = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(facts | (config or {})), "utf-8")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")


def write_tensors(path: Path, header: dict[str, Any], body: bytes) -> None:
    """A safetensors file."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def weights(folder: Path) -> dict[str, npt.NDArray[np.float64]]:
    """What was written, read a second way: in double precision."""
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        kind = _STORED[entry["dtype"]]
        values = np.frombuffer(data[8 + length + begin : 8 + length + end], kind)
        found[name] = values.reshape(entry["shape"]).astype(np.float64)
    return found
