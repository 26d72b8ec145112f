"""The least time that a row's work can take on its machine, by the rates that were measured there.

A pass has to do the products over its pairs and to read and write every array once. The machine's own matrix
product says how fast the first can be, its own copy how fast the second; the slower of the two is the roof.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .rows import Row, on_gpu

__all__ = ["Roofs", "least_bytes", "roofs_of", "work_of"]

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
#: Our CPU engine and NumPy's BLAS multiply halves as float32.
_HOST_ARITHMETIC = {"float16": "float32", "bfloat16": "float32"}


@dataclass
class Roofs:
    """What one machine reaches.

    Attributes
    ----------
    products : dict
        Operations a second, by element type.
    bytes_per_second : float
        Of a copy, read and written; 0 where none was measured.
    """

    products: dict[str, float] = field(default_factory=dict)
    bytes_per_second: float = 0.0

    def product(self, row: Row) -> float:
        """Operations a second in the arithmetic of a row; 0 if they were not measured."""
        dtype: str = row["dtype"]
        return self.products.get(dtype if on_gpu(row) else _HOST_ARITHMETIC.get(dtype, dtype), 0.0)

    def share(self, row: Row) -> float | None:
        """Least time over measured time; None where the machine's rates or the row's sizes are not known."""
        product = self.product(row)
        if not product or not self.bytes_per_second or "n_q" not in row:
            return None
        least = max(work_of(row) / product, least_bytes(row) / self.bytes_per_second)
        return float(least / row["seconds"])


def roofs_of(found: Iterable[Row]) -> Roofs:
    """The best rates among the rows of one machine."""
    roofs = Roofs()
    for row in found:
        if row["status"] != "measured":
            continue
        if row["kind"] == "rate" and "gbytes_per_second" in row:
            roofs.bytes_per_second = max(roofs.bytes_per_second, row["gbytes_per_second"] * 1e9)
        elif row["kind"] == "rate" or row["contender"] == "numpy_sgemm":
            dtype = row.get("dtype", "float32")
            roofs.products[dtype] = max(roofs.products.get(dtype, 0.0), row["gflops"] * 1e9)
    return roofs


def work_of(row: Row) -> float:
    """Operations over the selected pairs."""
    return float(row["gflops"] * 1e9 * row["seconds"])


def least_bytes(row: Row) -> int:
    """Every array of the pass read or written once, without the pattern.

    >>> sizes = {"heads": 2, "kv_heads": 1, "n_q": 10, "n_k": 10, "head_dim": 4, "value_dim": 4}
    >>> least_bytes({**sizes, "dtype": "float16", "direction": "forward"})
    480
    """
    item = _ITEM_BYTES[row["dtype"]]
    queries, keys = row["heads"] * row["n_q"], row["kv_heads"] * row["n_k"]
    both = row["head_dim"] + row["value_dim"]
    forward = item * both * (queries + keys)  # q and out, k and v
    # q, out, dout and lse read, dq written; k and v read, dk and dv written.
    backward = item * (queries * 2 * both + 2 * keys * both) + queries * max(4, item)
    return int({"forward": forward, "backward": backward, "training": forward + backward}[row["direction"]])
