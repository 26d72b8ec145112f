"""Safetensors files: a header in JSON, then the tensors one behind the other. The reader is ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SafetensorsFile"]

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}


class SafetensorsFile:
    """Tensors of a file, mapped into memory and copied when asked for.

    Eight bytes are the length of the header; it names type, shape, and the bytes of every tensor, counted
    from the header's end.
    """

    def __init__(self, path: Path) -> None:
        self._bytes = np.memmap(path, np.uint8, "r")
        length = int(self._bytes[:8].view("<u8")[0]) if len(self._bytes) >= 8 else -1
        if not 0 < length <= len(self._bytes) - 8:
            raise ValueError(f"{path} has no header of a safetensors file; take model.safetensors")
        self._start = 8 + length
        self._entries: dict[str, dict[str, Any]] = json.loads(bytes(self._bytes[8 : self._start]))
        self._entries.pop("__metadata__", None)

    @property
    def names(self) -> list[str]:
        """Of all tensors, in the order of the header."""
        return list(self._entries)

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A tensor as it is stored."""
        entry = self._entries[name]
        if entry["dtype"] not in _TYPES:
            raise ValueError(f"tensor {name} is of type {entry['dtype']}; {', '.join(_TYPES)} are read here")
        begin, end = entry["data_offsets"]
        stored = self._bytes[self._start + begin : self._start + end]
        # A copy: tensors need not begin at a multiple of their items.
        return np.frombuffer(stored.tobytes(), _TYPES[entry["dtype"]]).reshape(entry["shape"])
