"""A GGUF file of a few kilobytes: a random model with every type of tensor, and bytes for tokens."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reports.scenarios.gguf import BLOCK

Floats = npt.NDArray[np.float32]

WIDTH, INNER, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
HEAD_DIM = WIDTH // HEADS
MERGES = ["Ġ t", "h e", "Ġt he", "Ġ Ġ", "ĠĠ ĠĠ", "i n", "in g", "t h"]
ALIGNMENT = 64

_STRING, _ARRAY, _UINT32, _FLOAT32 = 8, 9, 4, 6


def letters() -> list[str]:
    """GPT-2's letter for every byte, in the order of the bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) if byte in kept else chr(256 + moved.index(byte)) for byte in range(256)]


def tokens() -> list[str]:
    return [*letters(), *(merge.replace(" ", "") for merge in MERGES)]


def metadata() -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.alignment": ALIGNMENT,
        "llama.block_count": LAYERS,
        "llama.context_length": 4096,
        "llama.embedding_length": WIDTH,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 1000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens(),
        "tokenizer.ggml.merges": MERGES,
    }


def q8_0(values: Floats) -> tuple[bytes, Floats]:
    """Bytes of a Q8_0 tensor, and what they mean."""
    blocks = values.reshape(-1, BLOCK)
    scale = (np.abs(blocks).max(axis=1) / 127).astype(np.float16)
    whole = np.rint(blocks / scale.astype(np.float32)[:, None]).astype(np.int8)
    data = b"".join(s.tobytes() + row.tobytes() for s, row in zip(scale, whole, strict=True))
    return data, (whole * scale.astype(np.float32)[:, None]).reshape(values.shape)


def q4_1(values: Floats) -> tuple[bytes, Floats]:
    """Bytes of a Q4_1 tensor, and what they mean."""
    data, means = b"", []
    for block in values.reshape(-1, BLOCK):
        low = np.float16(block.min())
        scale = np.float16((block.max() - block.min()) / 15)
        level = [min(15, max(0, round((float(x) - float(low)) / float(scale)))) for x in block]
        packed = bytes(level[at] | level[at + BLOCK // 2] << 4 for at in range(BLOCK // 2))
        data += scale.tobytes() + low.tobytes() + packed
        means.append([float(low) + float(scale) * one for one in level])
    return data, np.array(means, np.float32).reshape(values.shape)


def write(path: Path, *, seed: int = 0, facts: dict[str, Any] | None = None) -> dict[str, Floats]:
    """Write the model; returns its weights as a reader has to find them."""
    rng = np.random.default_rng(seed)
    shapes = {
        "token_embd": (len(tokens()), WIDTH),
        "output_norm": (WIDTH,),
        **{
            f"blk.{layer}.{name}": shape
            for layer in range(LAYERS)
            for name, shape in {
                "attn_norm": (WIDTH,),
                "attn_q": (WIDTH, WIDTH),
                "attn_k": (KV_HEADS * HEAD_DIM, WIDTH),
                "attn_v": (KV_HEADS * HEAD_DIM, WIDTH),
                "attn_output": (WIDTH, WIDTH),
                "ffn_norm": (WIDTH,),
                "ffn_gate": (INNER, WIDTH),
                "ffn_up": (INNER, WIDTH),
                "ffn_down": (WIDTH, INNER),
            }.items()
        },
    }
    table, body, weights = b"", b"", {}
    for stem, shape in shapes.items():
        name = f"{stem}.weight"
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            kind, data, weights[name] = 0, values.tobytes(), values
        else:
            values *= 2.0 / np.sqrt(np.float32(shape[1]))
            kind, (data, weights[name]) = (8, q8_0(values)) if stem == "token_embd" else (3, q4_1(values))
        dimensions = b"".join(struct.pack("<Q", size) for size in reversed(shape))
        table += _string(name) + struct.pack("<I", len(shape)) + dimensions
        table += struct.pack("<IQ", kind, len(body))
        body += data + bytes(-len(data) % ALIGNMENT)
    pairs = {**metadata(), **(facts or {})}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(pairs))
    head += b"".join(_string(key) + _typed(value) for key, value in pairs.items()) + table
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + body)
    return weights


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    return struct.pack("<II", _UINT32, value)
