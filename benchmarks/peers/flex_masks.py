"""Patterns the way FlexAttention's users give them: as arithmetic, as a small table, or as a look-up.

Arithmetic where a pattern has a formula, a small table of blocks or of documents where it consists of
those, and for everything else a look-up in the dense mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import numba_sparse_attn as nsa

from ..workload import Workload

__all__ = ["MaskMod", "arithmetic_mask", "lookup_mask"]

#: mask_mod(batch, head, query, key) -> bool tensor
MaskMod = Callable[[Any, Any, Any, Any], Any]


def arithmetic_mask(workload: Workload, device: Any) -> MaskMod | None:
    """The pattern as a formula or a small table; None if it is neither."""
    arguments = workload.spec.arguments
    make = _FORMULAS.get(workload.spec.function)
    if make is None or not isinstance(workload.pattern, nsa.Pattern):
        return None
    return make(workload, device, **arguments)


def lookup_mask(workload: Workload, device: Any) -> MaskMod:
    """The dense mask, looked up pair by pair: eight pairs a byte.

    With a byte a pair FlexAttention's results at 65,536 tokens were wrong, with bits they are right: a table
    of 2**32 entries seems to be more than its index arithmetic takes.
    """
    import torch

    if isinstance(workload.pattern, nsa.Pattern):
        table = torch.from_numpy(_bits_of(workload.pattern)).to(device)
        return lambda b, h, i, j: ((table[i, j // 8] >> (j % 8)) & 1) != 0
    tables = np.stack([_bits_of(workload.head_pattern(head)) for head in range(workload.heads)])
    stacked = torch.from_numpy(tables).to(device)
    return lambda b, h, i, j: ((stacked[h, i, j // 8] >> (j % 8)) & 1) != 0


def _bits_of(pattern: nsa.Pattern) -> npt.NDArray[np.uint8]:
    """Bit ``j % 8`` of byte ``[i, j // 8]`` is pair (i, j)."""
    csr = pattern.rows()
    width = -(-csr.shape[1] // 8)
    bits = np.zeros(csr.shape[0] * width, np.uint8)
    rows = np.repeat(np.arange(csr.shape[0], dtype=np.int64), np.diff(csr.indptr))
    places = rows * width + csr.indices // 8
    # Pairs are sorted, so those of a byte are neighbors.
    firsts = np.flatnonzero(np.diff(places, prepend=-1))
    if len(firsts):
        values = np.left_shift(np.uint8(1), (csr.indices % 8).astype(np.uint8))
        bits[places[firsts]] = np.bitwise_or.reduceat(values, firsts)
    return bits.reshape(csr.shape[0], width)


def _full(workload: Workload, device: Any, n: int, n_keys: int | None = None) -> MaskMod:
    return lambda b, h, i, j: i >= 0


def _causal(
    workload: Workload, device: Any, n: int, n_keys: int | None = None, align: str = "bottom-right"
) -> MaskMod:
    shift = 0 if align == "top-left" or n_keys is None else n_keys - n
    return lambda b, h, i, j: i + shift >= j


def _sliding_window(workload: Workload, device: Any, n: int, window: int, causal: bool = False) -> MaskMod:
    if causal:
        return lambda b, h, i, j: (i >= j) & (i - j <= window)
    return lambda b, h, i, j: (i - j).abs() <= window


def _dilated_window(
    workload: Workload, device: Any, n: int, window: int, dilation: int | list[int]
) -> MaskMod | None:
    if not isinstance(dilation, int):
        return None
    reach = window * dilation
    return lambda b, h, i, j: ((i - j) % dilation == 0) & ((i - j).abs() <= reach)


def _strided(
    workload: Workload, device: Any, n: int, stride: int, window: int, causal: bool = False
) -> MaskMod:
    def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
        near = ((i - j).abs() <= window) | ((i - j) % stride == 0)
        return near & (i >= j) if causal else near

    return mask


def _document_qa(
    workload: Workload, device: Any, n: int, question: int, window: int, boundaries: Any = None
) -> MaskMod | None:
    if boundaries is not None:
        return None
    return lambda b, h, i, j: (i < question) | (j < question) | ((i - j).abs() <= window)


def _longformer(
    workload: Workload, device: Any, n: int, window: int, tokens: list[int], random: int = 0, seed: int = 0
) -> MaskMod | None:
    import torch

    if random:
        return None
    hubs = torch.zeros(n, dtype=torch.bool, device=device)
    hubs[torch.tensor(tokens, device=device)] = True
    return lambda b, h, i, j: hubs[i] | hubs[j] | ((i - j).abs() <= window)


def _documents(workload: Workload, device: Any, lengths: list[int], causal: bool = False) -> MaskMod:
    import torch

    counts = torch.tensor(lengths, device=device)
    document = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts)
    if causal:
        return lambda b, h, i, j: (document[i] == document[j]) & (i >= j)
    return lambda b, h, i, j: document[i] == document[j]


def _blocks(workload: Workload, device: Any, n: int, block: int, **_: Any) -> MaskMod:
    import torch

    firsts = [(row, row + 1) for row in range(0, n, block)]
    table = torch.from_numpy(workload.mask_rows(0, firsts)[:, ::block].copy()).to(device)
    return lambda b, h, i, j: table[i // block, j // block]


_FORMULAS: dict[str, Callable[..., MaskMod | None]] = {
    "full": _full,
    "causal": _causal,
    "sliding_window": _sliding_window,
    "dilated_window": _dilated_window,
    "strided": _strided,
    "document_qa": _document_qa,
    "longformer": _longformer,
    "documents": _documents,
    "bigbird": _blocks,
    "random_blocks": _blocks,
}
