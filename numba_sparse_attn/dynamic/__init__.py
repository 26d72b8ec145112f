"""Patterns that are chosen by looking at q and k.

A selection takes q and k and gives a :class:`~numba_sparse_attn.Pattern`, or one for every head as
:class:`~numba_sparse_attn.HeadPatterns`; so engines, plans, gradients, set operations, pictures and files
work on it as on any other pattern. What is selected is fixed: no gradient goes through the choice, unless
it is made by :func:`block_gates`.

How this package is built:

- One file a selection, registered in :mod:`~numba_sparse_attn.dynamic.catalogue` with examples (sizes, a seed
  and arguments; the arrays are made from the seed) and its definition once more, in n x n arrays of plain
  NumPy. Tests, cards, stored files and benchmarks are driven by that table.
- Arguments mean the same everywhere. q is ``(..., heads, n_q, d)`` and k ``(..., kv_heads, n_k, d)``, or both
  ``(n, d)``. `budget` counts keys (or blocks of keys) of a query and is one number or one for every query
  head. `causal` leaves only the keys ``j <= i + n_k - n_q``. Of equal scores the first counts as larger, a
  NaN score counts as the smallest; so a choice depends on nothing but its arguments.
- Sums are taken in float32, in float64 for float64 arrays. Scores exist for a panel of queries at a time.
- What is chosen block by block stays a list of blocks: pieces where a block of queries shares its choice, a
  table of block numbers where every query has its own. Pairs are written out when an engine asks for them.
- What is learned is learned here, from nothing but q, k and attention: the gradients of
  :class:`BlockPredictor` are written by hand, and :class:`Adam` follows them.
- A selection says its rule once, in terms of what ``Tools`` (``_tools.py``) compute from rows of q and k:
  on the host, or by kernels where arrays lie in GPU memory. From there nothing comes back but what was
  chosen, and a call waits for that once (`vertical_slash` twice). Sums are of the same terms in another
  order, so scores that are closer than rounding may change places between host and GPU. What has no kernels
  refuses arrays in GPU memory.
"""

from __future__ import annotations

from .adam import Adam
from .adaptive import adaptive
from .block_gates import Gates, block_gates, gate_gradients
from .block_masses import block_masses
from .block_predictor import BlockPredictor
from .block_top_k import block_top_k
from .compression import compress, compress_backward
from .kmeans_routing import kmeans_centroids, kmeans_routing, kmeans_update
from .landmarks_by_clustering import landmarks_by_clustering
from .landmarks_by_importance import landmarks_by_importance
from .landmarks_by_structure import landmarks_by_structure
from .learned_blocks import learned_blocks
from .lsh import lsh
from .mlp_routing import mlp_routing
from .moba import moba
from .nsa_blocks import nsa_blocks
from .nsa_branches import Branches, nsa_branches
from .quest import quest
from .threshold import threshold
from .top_k import top_k
from .vertical_slash import vertical_slash

__all__ = [
    "Adam",
    "BlockPredictor",
    "Branches",
    "Gates",
    "adaptive",
    "block_gates",
    "block_masses",
    "block_top_k",
    "compress",
    "compress_backward",
    "gate_gradients",
    "kmeans_centroids",
    "kmeans_routing",
    "kmeans_update",
    "landmarks_by_clustering",
    "landmarks_by_importance",
    "landmarks_by_structure",
    "learned_blocks",
    "lsh",
    "mlp_routing",
    "moba",
    "nsa_blocks",
    "nsa_branches",
    "quest",
    "threshold",
    "top_k",
    "vertical_slash",
]
