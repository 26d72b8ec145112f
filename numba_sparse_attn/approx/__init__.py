"""The linear and low-rank family: not attention over chosen pairs, but something cheaper in its place.

- :func:`linformer`: keys and values are mixed down to a few before attention, by matrices that are learned
  (Wang et al. 2020);
- :func:`performer`: the exponential of a score becomes a product of positive random features, and sums over
  keys are made once for all queries (Choromanski et al. 2021);
- :func:`synthesizer`: scores are learned, or made from the query's token alone (Tay et al. 2021).

Every function has a twin with ``_vjp`` behind its name that also returns a pullback: from the gradient of the
result to those of all arrays, in the order of the arguments.

They compute where the arrays are: NumPy's by NumPy, and those of CuPy, PyTorch and JAX by these, which is
matrix products and exponentials of whole arrays and needs no kernel of ours. 16-bit types are computed in
float32 and rounded at the end.
"""

from .linformer import linformer, linformer_projection, linformer_vjp
from .performer import Features, performer, performer_vjp
from .synthesizer import dense_scores, factorized_scores, synthesizer, synthesizer_vjp

__all__ = [
    "Features",
    "dense_scores",
    "factorized_scores",
    "linformer",
    "linformer_projection",
    "linformer_vjp",
    "performer",
    "performer_vjp",
    "synthesizer",
    "synthesizer_vjp",
]
