"""The machine's own rate: one large matrix product by NumPy, on all threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..workload import Workload
from . import Prepared

__all__ = ["Peer", "prepare_product", "product_flops"]

SIZE = 4096


def product_flops(size: int) -> int:
    """Operations of a square product."""
    return 2 * size**3


class Peer:
    """Not attention: the roof under which attention is measured."""

    name = "numpy_sgemm"

    def why_absent(self) -> str:
        """NumPy is always there."""
        return ""

    def why_not(self, workload: Workload) -> str:
        """Independent of the workload."""
        return ""

    def version(self) -> dict[str, str]:
        """NumPy and its BLAS."""
        build: Any = np.show_config(mode="dicts")
        blas = build["Build Dependencies"]["blas"]
        return {"numpy": np.__version__, "blas": f"{blas['name']} {blas['version']}"}

    def prepare(self, workload: Workload) -> Prepared:
        """Two random matrices and room for their product."""
        return prepare_product(SIZE)


def prepare_product(size: int, dtype: str = "float32") -> Prepared:
    """A square product of random matrices: zeros would run faster than real data."""
    left, right = np.random.default_rng(0).standard_normal((2, size, size)).astype(dtype)
    out = np.empty_like(left)
    np.matmul(left, right, out=out)
    return Prepared(lambda: np.matmul(left, right, out=out), flops=product_flops(size), checked=False)
