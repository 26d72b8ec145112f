"""BSR: pairs in dense blocks of one size.

A block is stored as a dense array, so zeros inside of it are padding and no pairs; what counts is
every entry that is not zero. That keeps the round trip lossless for any pattern and any block size.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ..errors import FormatError
from .checks import check_blocks, check_indices, check_indptr, check_shape
from .coo import from_pairs
from .csr import Csr

__all__ = ["from_bsr", "to_bsr"]


def from_bsr(matrix: Any) -> Csr:
    """Pairs of a SciPy BSR array or matrix, checked; repeated blocks are united.

    Parameters
    ----------
    matrix : scipy.sparse.bsr_array or bsr_matrix
        Every entry of a stored block that is not zero is a pair. Nothing is written to it.

    Returns
    -------
    Csr

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> blocks = np.array([[[1, 0], [1, 1]]])
    >>> csr = from_bsr(sparse.bsr_array((blocks, [1], [0, 1, 1]), shape=(4, 4)))
    >>> csr.indptr.tolist(), csr.indices.tolist()
    ([0, 1, 3, 3, 3], [2, 2, 3])
    """
    shape = check_shape(matrix.shape, "a BSR array")
    block_columns = np.asarray(matrix.indices)
    data = check_blocks(matrix.data, block_columns.size)
    height, width = data.shape[1:]
    if shape[0] % height or shape[1] % width:
        raise FormatError(
            f"blocks of {height} x {width} in a shape of {shape[0]} x {shape[1]}",
            "a shape that is a multiple of the block",
            "pad the shape, or convert with tocsr()",
        )
    check_indices(block_columns, shape[1] // width, "indices", "block columns")
    indptr = check_indptr(matrix.indptr, shape[0] // height, block_columns.size)
    lengths: npt.NDArray[np.int64] = np.diff(indptr).astype(np.int64)
    block_rows = np.repeat(np.arange(shape[0] // height), lengths)
    block, row, column = np.nonzero(data)
    row += block_rows[block] * height
    column += block_columns.astype(np.int64)[block] * width
    return from_pairs(shape, row, column)


def to_bsr(csr: Csr, blocksize: tuple[int, int]) -> sparse.bsr_array:
    """The pairs as a new SciPy BSR array of True and, where a block is not full, False.

    Parameters
    ----------
    csr : Csr
    blocksize : (height, width)
        Each divides the axis it belongs to: SciPy has no ragged blocks.

    Examples
    --------
    >>> import numpy as np
    >>> pairs = from_pairs((4, 4), np.array([0, 1, 1]), np.array([2, 2, 3]))
    >>> matrix = to_bsr(pairs, (2, 2))
    >>> matrix.indices.tolist(), matrix.data.astype(int).tolist()
    ([1], [[[1, 0], [1, 1]]])
    """
    try:
        sides = tuple(operator.index(side) for side in blocksize)
    except TypeError:
        sides = ()
    if len(sides) != 2 or min(sides) < 1 or csr.shape[0] % sides[0] or csr.shape[1] % sides[1]:
        raise FormatError(
            f"blocksize={blocksize!r} for a pattern of {csr.shape[0]} x {csr.shape[1]}",
            "a pair of positive block sides that divide the shape",
            "choose sides that divide it, or use tocsr()",
        )
    ones = np.ones(csr.nnz, np.bool_)
    return sparse.csr_array((ones, csr.indices, csr.indptr), shape=csr.shape).tobsr(blocksize=sides)
