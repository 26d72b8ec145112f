"""GGUF files: the metadata, and the tensors as float32. The layout is llama.cpp's; the reader is ours.

A file is a header, key-value metadata, a table of tensors, and after padding the tensors themselves, all
little-endian. Tensors are stored with their dimensions reversed: fastest first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK", "GgufFile"]

Floats = npt.NDArray[np.float32]

#: Weights that share a scale in the quantised formats.
BLOCK = 32

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_Q4_1 = np.dtype([("scale", "<f2"), ("low", "<f2"), ("nibbles", "u1", BLOCK // 2)])
_Q8_0 = np.dtype([("scale", "<f2"), ("values", "i1", BLOCK)])


def _from_q4_1(blocks: npt.NDArray[Any]) -> Floats:
    """16 levels from `low` up, `scale` apart; the low nibbles are the first half of a block."""
    nibbles = blocks["nibbles"]
    levels = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32)
    return levels * blocks["scale"].astype(np.float32)[:, None] + blocks["low"].astype(np.float32)[:, None]


def _from_q8_0(blocks: npt.NDArray[Any]) -> Floats:
    return blocks["values"].astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]


#: By a tensor's type number: its name, how a run of weights lies in memory, weights a run, the way back.
_TYPES: dict[int, tuple[str, np.dtype[Any], int, Callable[[npt.NDArray[Any]], Floats]]] = {
    0: ("F32", np.dtype("<f4"), 1, lambda values: values.astype(np.float32)),
    3: ("Q4_1", _Q4_1, BLOCK, _from_q4_1),
    8: ("Q8_0", _Q8_0, BLOCK, _from_q8_0),
}


@dataclass(frozen=True)
class _Entry:
    shape: tuple[int, ...]
    kind: int
    offset: int


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.position = 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self.position)
        self.position += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        self.position += length
        return bytes(self._data[self.position - length : self.position]).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            return [self.value(inner) for _ in range(count)]
        return self.scalar(_SCALARS[kind])


class GgufFile:
    """Metadata, and tensors that are decoded when asked for."""

    def __init__(self, path: Path) -> None:
        # An array that is mapped and not read: tensors are decoded one by one.
        self._bytes = np.memmap(path, np.uint8, "r")
        cursor = _Cursor(self._bytes.data)
        magic, version = cursor.scalar("4s"), cursor.scalar("I")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{path} begins with {magic!r}, version {version}; GGUF 2 and 3 are read here")
        tensors, pairs = cursor.scalar("Q"), cursor.scalar("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = cursor.string()
            self.metadata[key] = cursor.value(cursor.scalar("I"))
        self._entries: dict[str, _Entry] = {}
        for _ in range(tensors):
            name = cursor.string()
            shape = tuple(cursor.scalar("Q") for _ in range(cursor.scalar("I")))[::-1]
            self._entries[name] = _Entry(shape, cursor.scalar("I"), cursor.scalar("Q"))
        alignment = self.metadata.get("general.alignment", 32)
        self._start = -(-cursor.position // alignment) * alignment

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def kinds(self) -> dict[str, int]:
        """How many tensors of which type the file has."""
        names = [_TYPES[entry.kind][0] for entry in self._entries.values()]
        return {name: names.count(name) for name in sorted(set(names))}

    def tensor(self, name: str) -> Floats:
        """A tensor, the last axis the fastest."""
        entry = self._entries[name]
        if entry.kind not in _TYPES:
            known = ", ".join(kind[0] for kind in _TYPES.values())
            raise ValueError(f"tensor {name} is of type number {entry.kind}; {known} are read here")
        _, layout, run, decode = _TYPES[entry.kind]
        size = int(np.prod(entry.shape)) // run * layout.itemsize
        begin = self._start + entry.offset
        return decode(self._bytes[begin : begin + size].view(layout)).reshape(entry.shape)
