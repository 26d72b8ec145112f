"""How a pattern lies in memory: checked, frozen, ready for a kernel.

The handbook in the top-level folder ``formats`` specifies each of these byte by byte.
"""

from .bsr import from_bsr, to_bsr
from .coo import from_coo, to_coo
from .csr import Csr, canonical, to_csr
from .indices import from_indices, to_indices
from .masks import from_mask, to_mask
from .pieces import UNBOUNDED, Axis, make_pieces
from .scipy_arrays import from_scipy
from .tiles import FULL, TILE, WORDS, Tiles, lane_words

__all__ = [
    "FULL",
    "TILE",
    "UNBOUNDED",
    "WORDS",
    "Axis",
    "Csr",
    "Tiles",
    "canonical",
    "from_bsr",
    "from_coo",
    "from_indices",
    "from_mask",
    "from_scipy",
    "lane_words",
    "make_pieces",
    "to_bsr",
    "to_coo",
    "to_csr",
    "to_indices",
    "to_mask",
]
