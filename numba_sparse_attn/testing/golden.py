"""Golden files: arrays that were right once, stored, and compared bit by bit ever after."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["assert_golden", "write_golden"]


def write_golden(path: str | os.PathLike[str], **arrays: npt.NDArray[Any]) -> None:
    """Store arrays by name in a compressed ``.npz`` file.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "golden.npz"
    >>> write_golden(path, rows=np.arange(3), keys=np.arange(4))
    >>> sorted(np.load(path))
    ['keys', 'rows']
    """
    np.savez_compressed(path, allow_pickle=False, **arrays)


def assert_golden(path: str | os.PathLike[str], **arrays: npt.NDArray[Any]) -> None:
    """Fail unless the file holds exactly these arrays: names, types, shapes and bits.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "golden.npz"
    >>> write_golden(path, rows=np.arange(3))
    >>> assert_golden(path, rows=np.arange(3))
    >>> assert_golden(path, rows=np.arange(3) * 2)
    Traceback (most recent call last):
    AssertionError: rows differs from golden.npz in 2 of 3 elements, first at (1,)
    """
    name = os.path.basename(path)
    with np.load(path, allow_pickle=False) as stored:
        if sorted(stored) != sorted(arrays):
            raise AssertionError(f"{name} holds {sorted(stored)}, expected {sorted(arrays)}")
        for key, array in arrays.items():
            kept = stored[key]
            if (kept.dtype, kept.shape) != (array.dtype, array.shape):
                raise AssertionError(
                    f"{key} is {array.dtype} {array.shape}, in {name} it is {kept.dtype} {kept.shape}"
                )
            wrong = np.frombuffer(kept.tobytes(), np.uint8) != np.frombuffer(array.tobytes(), np.uint8)
            differs = wrong.reshape(*kept.shape, kept.itemsize).any(axis=-1)
            if differs.any():
                first = tuple(int(index[0]) for index in np.nonzero(differs))
                raise AssertionError(
                    f"{key} differs from {name} in {np.count_nonzero(differs)} of {kept.size} elements, "
                    f"first at {first}"
                )
