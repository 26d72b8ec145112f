"""Orders of tokens in which the tiles of a pattern are full or empty, and functions that make them.

Engines on tiles pay for every tile that a pair lies in. Attention does not care how tokens are numbered, so
queries and keys may be put into an order of which a pattern makes fewer tiles, and results back into the
caller's. Patterns declare orders that suit them; a plan takes one where moving the tokens pays for itself.
"""

from .graph import reverse_cuthill_mckee
from .made import boxes, buckets, hilbert, residues
from .order import Order, Recipe, as_order

__all__ = ["Order", "Recipe", "as_order", "boxes", "buckets", "hilbert", "residues", "reverse_cuthill_mckee"]
