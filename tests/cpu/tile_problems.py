"""Tiles made by hand, and the engine run on them, for the tests of the tile path.

Nothing of the package's own way from patterns to tiles is used here.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from numba_sparse_attn import cpu
from numba_sparse_attn.formats.tiles import FULL, TILE, WORDS, Tiles
from numba_sparse_attn.formats.work import Request


def tiles_of(mask):
    """Tiles of a bool mask (n_q, n_k)."""
    rows, columns = (-(-size // TILE) for size in mask.shape)
    padded = np.zeros((rows * TILE, columns * TILE), bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    blocks = padded.reshape(rows, TILE, columns, TILE).swapaxes(1, 2)
    pool = [np.full((TILE, WORDS), ~np.uint64(0))]
    listed, ids = [], []
    for row, column in np.argwhere(blocks.any(axis=(2, 3))):
        block = blocks[row, column]
        listed.append((row, column))
        ids.append(FULL if block.all() else len(pool))
        if not block.all():
            pool.append(np.packbits(block, axis=1, bitorder="little").view("<u8").astype(np.uint64))
    where = np.array(listed, np.int64).reshape(-1, 2)
    ids = np.array(ids, np.int32)
    order = np.lexsort((where[:, 0], where[:, 1]))
    return Tiles(
        shape=mask.shape,
        indptr=np.searchsorted(where[:, 0], np.arange(rows + 1)),
        columns=where[:, 1].astype(np.int32),
        mask_ids=ids,
        transposed_indptr=np.searchsorted(where[order, 1], np.arange(columns + 1)),
        transposed_rows=where[order, 0].astype(np.int32),
        transposed_mask_ids=ids[order],
        pool=np.array(pool),
        nnz=int(np.count_nonzero(mask)),
    )


def without_full_tiles(tiles):
    """The same set of pairs with its full tiles as partial ones."""
    number = np.int32(len(tiles.pool))
    return dataclasses.replace(
        tiles,
        mask_ids=np.where(tiles.mask_ids == FULL, number, tiles.mask_ids),
        transposed_mask_ids=np.where(tiles.transposed_mask_ids == FULL, number, tiles.transposed_mask_ids),
        pool=np.concatenate((tiles.pool, tiles.pool[:1])),
    )


def request_of(structures, q, k, v, scale, which=None):
    """The request of a call; one structure for all heads unless `which` [batch, heads] says otherwise."""
    batch = int(np.prod(q.shape[:-3], dtype=np.int64))
    if isinstance(structures, Tiles):
        structures = (structures,)
    if which is None:
        which = np.zeros((batch, q.shape[-3]), np.int32)
    dimensions = (q.shape[-3], k.shape[-3], q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1])
    return Request(tuple(structures), which, *dimensions, q.dtype, scale)


def run_forward(structures, q, k, v, scale=0.25, which=None):
    """out and lse, in arrays that start as NaN."""
    request = request_of(structures, q, k, v, scale, which)
    out = np.full((*q.shape[:-1], v.shape[-1]), np.nan, q.dtype)
    lse = np.full(q.shape[:-1], np.nan, request.accumulator)
    cpu.forward(request, q, k, v, out, lse)
    return out, lse


def run_backward(structures, dout, q, k, v, out, lse, scale=0.25, which=None):
    """dq, dk and dv, in arrays that start as NaN."""
    request = request_of(structures, q, k, v, scale, which)
    gradients = tuple(np.full(array.shape, np.nan, array.dtype) for array in (q, k, v))
    cpu.backward(request, dout, q, k, v, out, lse, *gradients)
    return gradients


def draw(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def mixed_mask(n_q, n_k, seed=0):
    """Full tiles, a band, scattered columns over many tiles, empty rows, unseen keys, random pairs."""
    rng = np.random.default_rng(seed)
    row, column = np.arange(n_q)[:, None], np.arange(n_k)
    mask = (np.abs(column - row) <= 70) | (column % 37 == 5) | (rng.random((n_q, n_k)) < 0.01)
    mask[: TILE + 10, : TILE + 10] = True
    mask[[1, n_q // 2, n_q - 1]] = False
    mask[:, [3, n_k // 2, n_k - 2]] = False
    return mask


def odd_layouts(array):
    """Views with the same values and unusual strides, by name."""
    spread = np.repeat(np.repeat(array, 2, axis=-1), 3, axis=-2)
    memory = np.zeros(array.nbytes + 1, np.uint8)
    shifted = memory[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return {
        "Fortran order": np.asfortranarray(array),
        "every second element": spread[..., ::3, ::2],
        "backwards": np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1],
        "heads inside": np.ascontiguousarray(array.swapaxes(-3, -2)).swapaxes(-3, -2),
        "not aligned": shifted,
    }
