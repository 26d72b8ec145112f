"""Changes of scores to be timed, by name: what each costs beside the same call without it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from numba_sparse_attn import scores

from .workload import Workload

__all__ = ["CHANGES"]

#: Differences of positions that the relative tables tell apart.
_REACH = 257


def _bent(score: float, head: int, i: int, j: int) -> float:
    """As a user would write a soft-cap; its derivative is derived."""
    return 30.0 * math.tanh(score / 30.0)


def _bias(workload: Workload) -> Any:
    data = np.random.default_rng(0).standard_normal(workload.head_pattern(0).nnz, np.float32)
    return scores.bias(data, learnable=False)


def _learnt_bias(workload: Workload) -> Any:
    data = np.random.default_rng(0).standard_normal(workload.head_pattern(0).nnz, np.float32)
    return scores.bias(data)


#: For a workload with one pattern for all heads.
CHANGES: Mapping[str, Callable[[Workload], Any]] = {
    "alibi": lambda workload: scores.alibi(workload.heads),
    "softcap": lambda workload: scores.softcap(30.0),
    "relative": lambda workload: scores.relative(
        np.zeros((workload.heads, _REACH), np.float32), learnable=False
    ),
    "bias": _bias,
    "learnt_bias": _learnt_bias,
    "sink": lambda workload: scores.sink(np.zeros(workload.heads, np.float32), learnable=False),
    "function": lambda workload: scores.modify(_bent),
}
