"""The reader of GGUF files, on a file whose every byte we wrote."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from reports.scenarios.gguf import GgufFile

from . import tiny_model


def test_tensors_and_metadata_are_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    weights = tiny_model.write(path)
    file = GgufFile(path)
    assert file.kinds() == {"F32": 5, "Q4_1": 14, "Q8_0": 1}
    for name, values in weights.items():
        assert name in file
        found = file.tensor(name)
        assert found.dtype == np.float32 and found.shape == values.shape
        np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-7)
    assert "output.weight" not in file
    written = tiny_model.metadata()
    assert file.metadata.keys() == written.keys()
    for key, value in written.items():
        assert file.metadata[key] == (pytest.approx(value) if isinstance(value, float) else value), key


def test_other_files_and_other_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_model.write(path)
    data = path.read_bytes()
    path.write_bytes(b"GGML" + data[4:])
    with pytest.raises(ValueError, match="begins with b'GGML'"):
        GgufFile(path)
    # The type of the first tensor follows its name, its number of dimensions and the two dimensions.
    place = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    path.write_bytes(data[:place] + struct.pack("<I", 14) + data[place + 4 :])
    with pytest.raises(ValueError, match="type number 14; F32, Q4_1, Q8_0 are read here"):
        GgufFile(path).tensor("token_embd.weight")
