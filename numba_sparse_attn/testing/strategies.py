"""Hypothesis strategies: sizes at the edges, patterns, arrays with any strides, sparse arrays, good and bad.

Numbers inside of arrays come from a seeded generator and not from Hypothesis: shrinking a thousand
floats helps nobody, shrinking the shape and the kind of pattern does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from scipy import sparse

from .poison import nan_filled
from .problems import DTYPES, Problem, random_problem

__all__ = [
    "bool_masks",
    "dtypes",
    "index_tables",
    "lengths",
    "malformed_csr_arrays",
    "problems",
    "repeated",
    "scipy_arrays",
    "views",
]

_SEEDS = st.integers(0, 2**32 - 1)
_MATRICES = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "coo": sparse.coo_matrix,
    "bsr": sparse.bsr_matrix,
}


def lengths(largest: int = 300, smallest: int = 0) -> st.SearchStrategy[int]:
    """Numbers of tokens: none, one, and both sides of every multiple of a tile or a vector.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(lengths(largest=200), lambda length: length > 130) > 130
    True
    """
    edges = sorted({0, 1, 2, 3, *(near + off for near in (16, 32, 64, 128, 256) for off in (-1, 0, 1))})
    inside = [edge for edge in edges if smallest <= edge <= largest]
    return st.sampled_from(inside) | st.integers(smallest, largest)


def dtypes(names: Sequence[str] = tuple(DTYPES)) -> st.SearchStrategy[np.dtype[Any]]:
    """Element types of attention, by default all of them.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(dtypes(), lambda dtype: dtype.itemsize == 4).name
    'float32'
    """
    return st.sampled_from([DTYPES[name] for name in names])


@st.composite
def bool_masks(draw: st.DrawFn, n_q: int, n_k: int) -> npt.NDArray[np.bool_]:
    """Masks ``(n_q, n_k)`` of every kind: empty, full, one pair, windows, random with empty and full rows.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(bool_masks(2, 2), lambda mask: mask.all()).tolist()
    [[True, True], [True, True]]
    """
    kind = draw(st.sampled_from(["random", "window", "ragged rows", "columns", "one pair", "full", "empty"]))
    rng = np.random.default_rng(draw(_SEEDS))
    mask = np.zeros((n_q, n_k), np.bool_)
    if kind == "random":
        mask[...] = rng.random((n_q, n_k)) < draw(st.sampled_from([0.02, 0.2, 0.7]))
    elif kind == "window":
        left, right = draw(st.integers(0, 40)), draw(st.integers(0, 40))
        difference = np.arange(n_k) - np.arange(n_q)[:, None]
        mask[...] = (-left <= difference) & (difference <= right)
    elif kind == "ragged rows":
        mask[...] = rng.random((n_q, n_k)) < rng.choice([0.0, 0.3, 1.0], size=(n_q, 1))
    elif kind == "columns":
        mask[...] = rng.random(n_k) < 0.3
    elif kind == "one pair":
        if mask.size:
            mask[rng.integers(n_q), rng.integers(n_k)] = True
    else:
        mask[...] = kind == "full"
    return mask


@st.composite
def views(draw: st.DrawFn, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Arrays equal to `array` with other strides: transposed memory, gaps, backwards, padded rows.

    `array` is of floats; between its elements lies NaN, so reading that shows.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> view = find(views(np.arange(3.0)), lambda array: array.strides[0] < 0)
    >>> view.tolist(), view.strides
    ([0.0, 1.0, 2.0], (-8,))
    """
    order = draw(st.permutations(range(array.ndim)))
    steps = [draw(st.sampled_from([1, 1, 2, -1, -2])) for _ in range(array.ndim)]
    margins = [draw(st.integers(0, 2)) for _ in range(array.ndim)]
    span = [size * abs(step) + margin for size, step, margin in zip(array.shape, steps, margins, strict=True)]
    buffer = nan_filled(tuple(span[axis] for axis in order), array.dtype).transpose(np.argsort(order))
    chosen = tuple(
        slice(margin, margin + size * step, step)
        if step > 0
        else slice(margin + size * -step - 1, (margin - 1) if margin else None, step)
        for size, step, margin in zip(array.shape, steps, margins, strict=True)
    )
    view = buffer[chosen]
    view[...] = array
    return view


@st.composite
def repeated(draw: st.DrawFn, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Arrays of `array`'s shape that repeat a part of it with a stride of zero, read-only.

    The last two axes, tokens and channels, are left as they are: a sum of equal terms rounds to the same side
    again and again, and says nothing about other sums.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> array = np.arange(8.0).reshape(2, 2, 2)
    >>> find(repeated(array), lambda array: array.strides[0] == 0)[1].tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    first = tuple(slice(0, 1) if draw(st.booleans()) else slice(None) for _ in array.shape[:-2])
    return np.broadcast_to(array[first], array.shape)


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    names: Sequence[str] = tuple(DTYPES),
    largest: int = 160,
    strided: bool = True,
) -> Problem:
    """Attention problems: ragged sizes, n_q and n_k apart, groups, batches, one mask or one a head.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(problems(), lambda problem: problem.k.shape[-2] > 0).k.dtype.name
    'float16'
    """
    n_q, n_k = draw(lengths(largest)), draw(lengths(largest))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads = kv_heads * group
    batch = draw(st.sampled_from([(), (), (2,)]))
    if draw(st.booleans()):
        mask = np.stack([draw(bool_masks(n_q, n_k)) for _ in range(heads)])
    else:
        mask = draw(bool_masks(n_q, n_k))
    head_dim = draw(st.sampled_from([1, 3, 16, 40, 64, 80]))
    problem = random_problem(
        mask,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=draw(st.sampled_from([head_dim, 1, 24])),
        batch=batch,
        dtype=draw(dtypes(names)),
        scale=draw(st.sampled_from([None, 0.3, -0.3, 0.0])),
        seed=draw(_SEEDS),
    )
    if strided and draw(st.booleans()):
        problem = problem.with_arrays(*(draw(views(array) | repeated(array)) for array in problem.arrays))
    return problem


@st.composite
def scipy_arrays(draw: st.DrawFn, mask: npt.NDArray[np.bool_], formats: Sequence[str] = ()) -> Any:
    """SciPy arrays or matrices whose stored entries are the True ones of `mask`.

    CSR and COO come with entries out of order and repeated, BSR with blocks of a size that divides the
    shape. Values are anything but zero.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> find(scipy_arrays(np.eye(3, dtype=bool)), lambda array: array.format == "coo").shape
    (3, 3)
    """
    kind = draw(st.sampled_from(list(formats) or ["csr", "coo", "bsr", "csc"]))
    rng = np.random.default_rng(draw(_SEEDS))
    row, column = np.nonzero(mask)
    if kind in ("coo", "csr"):
        again = rng.integers(0, max(row.size, 1), draw(st.integers(0, 5)) if row.size else 0)
        order = rng.permutation(row.size + again.size)
        row = np.concatenate((row, row[again]))[order]
        column = np.concatenate((column, column[again]))[order]
    values = rng.choice(np.array([1, 2, -3]), row.size).astype(
        draw(st.sampled_from(["f8", "f4", "i8", "bool"]))
    )
    index = draw(st.sampled_from([np.int32, np.int64]))
    if kind == "csr":
        # By hand: SciPy's own conversion would sort the entries and add up the repeated ones.
        order = np.argsort(row, kind="stable")
        indptr = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=mask.shape[0]))))
        made = sparse.csr_array(
            (values[order], column[order].astype(index), indptr.astype(index)), shape=mask.shape
        )
    else:
        coordinates = (row.astype(index), column.astype(index))
        made = sparse.coo_array((values, coordinates), shape=mask.shape)
    if kind == "csc":
        made = made.tocsc()
    if kind == "bsr":
        sides = [draw(st.sampled_from([s for s in (1, 2, 3, 8) if size % s == 0])) for size in mask.shape]
        made = made.tobsr(blocksize=sides)
    return _MATRICES[kind](made) if draw(st.booleans()) else made


@st.composite
def index_tables(draw: st.DrawFn, mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Index arrays of the True entries of `mask`: keys in any order, some twice, -1 anywhere between them.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> find(index_tables(np.eye(2, dtype=bool)), lambda table: True).tolist()
    [[0], [1]]
    """
    rng = np.random.default_rng(draw(_SEEDS))
    width = int(mask.sum(axis=1).max(initial=0)) + draw(st.integers(0, 3))
    table = np.full((len(mask), width), -1, draw(st.sampled_from([np.int64, np.int32, np.int16])))
    for row, seen in enumerate(mask):
        keys = np.flatnonzero(seen)
        spare = width - keys.size
        if keys.size:
            keys = np.concatenate((keys, rng.choice(keys, rng.integers(0, spare + 1))))
        table[row, : keys.size] = keys
        table[row] = rng.permutation(table[row])
    return table


@st.composite
def malformed_csr_arrays(draw: st.DrawFn) -> tuple[sparse.csr_array, str]:
    """SciPy CSR arrays with one thing wrong, and the words that the refusal begins with.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(malformed_csr_arrays(), lambda case: case[1].startswith("indptr[0]"))[1]
    'indptr[0] = 1'
    """
    rows, columns = draw(st.integers(2, 12)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(_SEEDS))
    mask = rng.random((rows, columns)) < 0.6
    mask[0, 0] = mask[1, 0] = True
    good = sparse.csr_array(mask.astype(np.float64))
    where = draw(st.integers(0, good.nnz - 1))
    fault = draw(
        st.sampled_from(
            ["start", "decreasing", "end", "length", "negative", "beyond", "zero", "nan", "float"]
        )
    )
    if fault == "start":
        good.indptr[0] = 1
        return good, "indptr[0] = 1"
    if fault == "decreasing":
        beyond = good.indices.size + 1
        good.indptr[1] = beyond
        return good, f"indptr[2] = {good.indptr[2]} after indptr[1] = {beyond}"
    if fault == "end":
        good.indptr[-1] += 1
        return good, f"an indptr that ends at {good.indptr[-1]} for {good.indices.size} indices"
    if fault == "length":
        good.indptr = good.indptr[:-1]
        return good, f"an indptr of {rows} entries for {rows} rows"
    if fault == "negative":
        good.indices[where] = -1
        return good, f"indices[{where}] = -1"
    if fault == "beyond":
        good.indices[where] = columns
        return good, f"indices[{where}] = {columns} with {columns} columns"
    if fault == "float":
        good.indices = good.indices.astype(np.float64)
        return good, "indices of float64"
    good.data[where] = 0.0 if fault == "zero" else np.nan
    return good, f"data[{where}] = {good.data[where]}"
