"""Stored patterns: the ``.npz`` files of ``scipy.sparse.save_npz``, read without SciPy's repairs.

``scipy.sparse.load_npz`` hands the stored arrays to a constructor that cuts off entries behind the end
of ``indptr`` and lets most other faults pass. A stored pattern is refused instead.
"""

from __future__ import annotations

import os
import zipfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from .csr import Csr
from .scipy_arrays import from_scipy

__all__ = ["read_arrays", "read_npz"]

#: Arrays of each stored format beside ``format`` and ``shape``.
_MEMBERS = {
    "csr": ("data", "indices", "indptr"),
    "csc": ("data", "indices", "indptr"),
    "bsr": ("data", "indices", "indptr"),
    "coo": ("data", "row", "col"),
}


def read_npz(path: str | os.PathLike[str]) -> Csr:
    """The pairs that a file of ``scipy.sparse.save_npz`` stores, checked.

    Parameters
    ----------
    path : str or path
        A file with a CSR, CSC, COO or BSR array. Pickled objects are never loaded.

    Returns
    -------
    Csr

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from scipy import sparse
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "pattern.npz"
    >>> sparse.save_npz(path, sparse.eye_array(3, format="csr"))
    >>> read_npz(path).indices.tolist()
    [0, 1, 2]
    """
    return from_scipy(_stored_array(path))


def read_arrays(path: str | os.PathLike[str], supported: str, advice: str) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an ``.npz`` file, none of them pickled; what is none is refused in these words."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {member: file[member] for member in file.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        name = os.path.basename(path)
        raise FormatError(f"{name}, which is no readable .npz file ({error})", supported, advice) from error


def _stored_array(path: str | os.PathLike[str]) -> Any:
    """The arrays of a file under the names that a SciPy array gives them."""
    name = os.path.basename(path)
    arrays = read_arrays(
        path,
        "a file written by scipy.sparse.save_npz",
        "write it again with save() or scipy.sparse.save_npz",
    )
    label = arrays["format"].item() if "format" in arrays else b""
    kind = label.decode("ascii", "replace") if isinstance(label, bytes) else str(label)
    members = _MEMBERS.get(kind, ())
    missing = [member for member in ("shape", *members) if member not in arrays]
    if not members or missing:
        raise FormatError(
            f"{name} with format {kind!r} and the arrays {', '.join(sorted(arrays)) or 'none'}",
            "a CSR, CSC, COO or BSR array written by scipy.sparse.save_npz",
            "convert it with tocsr() and write it again",
        )
    return SimpleNamespace(
        format=kind, shape=tuple(np.atleast_1d(arrays["shape"]).tolist()), **{m: arrays[m] for m in members}
    )
