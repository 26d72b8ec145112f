"""Sparse attention for NumPy and SciPy: say which query sees which key, get exact attention.

>>> import numpy as np, numba_sparse_attn as nsa
>>> q, k, v = np.random.default_rng(0).standard_normal((3, 4, 256, 64)).astype(np.float32)
>>> pattern = nsa.patterns.sliding_window(256, 16) | nsa.patterns.global_tokens(256, [0])
>>> nsa.sparse_attention(q, k, v, pattern).shape
(4, 256, 64)
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import normalisers, orders, patterns, scores
from .api import (
    create_sparse_mask,
    get_sparse_indices,
    plan,
    sparse_attention,
    sparse_attention_backward,
    vjp,
)
from .errors import (
    ArgumentError,
    DtypeError,
    EngineError,
    FormatError,
    PatternError,
    ShapeError,
    SparseAttentionError,
)
from .merging import gated_sum, gated_sum_backward, merge, merge_backward
from .patterns import HeadPatterns, Pattern, as_pattern
from .planner import Plan
from .weights import attention_weights

if TYPE_CHECKING:
    from . import analysis as analysis
    from . import approx as approx
    from . import dynamic as dynamic
    from . import plot as plot

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "DtypeError",
    "EngineError",
    "FormatError",
    "HeadPatterns",
    "Pattern",
    "PatternError",
    "Plan",
    "ShapeError",
    "SparseAttentionError",
    "as_pattern",
    "attention_weights",
    "create_sparse_mask",
    "gated_sum",
    "gated_sum_backward",
    "get_sparse_indices",
    "merge",
    "merge_backward",
    "normalisers",
    "orders",
    "patterns",
    "plan",
    "scores",
    "sparse_attention",
    "sparse_attention_backward",
    "vjp",
]

#: Sub-packages that are imported when they are first used: ``import numba_sparse_attn`` stays as fast.
_LAZY = ("analysis", "approx", "dynamic", "plot")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
