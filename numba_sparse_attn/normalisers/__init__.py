"""How scores become weights: what may stand in place of softmax, on any pattern.

Each function here returns a small frozen description, which is passed as ``normaliser=`` to
:func:`numba_sparse_attn.sparse_attention`, :func:`~numba_sparse_attn.sparse_attention_backward`,
:func:`~numba_sparse_attn.vjp`, :func:`~numba_sparse_attn.plan` and
:func:`~numba_sparse_attn.attention_weights`. Leaving it out means softmax.

They have one thing in common. Of a query with scores s over the keys that it sees there is one number, `lse`,
from which every weight follows by itself:

====================  ==========================================  ==========================================
normaliser            weight of a key with score s                lse is chosen so that
====================  ==========================================  ==========================================
softmax               exp(s - lse)                                weights sum to 1
softmax_plus_one      exp(s - lse)                                weights and exp(-lse) sum to 1
entmax(alpha)         max(0, 1 + (alpha - 1) (s - lse)) **        weights sum to 1
                      (1 / (alpha - 1))
entmax15              entmax(1.5): max(0, 1 + (s - lse) / 2)**2   weights sum to 1
sparsemax             entmax(2): max(0, 1 + s - lse)              weights sum to 1
sigmoid(bias)         1 / (1 + exp(lse - s))                      lse = -bias, or the logarithm of the number
                                                                  of keys that the query sees
====================  ==========================================  ==========================================

It is what ``return_lse=True`` returns and what the backward pass takes, in the same shape and type for all of
them, and -inf for a query without keys, whose output is 0.
"""

from .description import Normaliser
from .entmax import Entmax, entmax, entmax15, sparsemax
from .sigmoid import Sigmoid, sigmoid
from .softmax_plus_one import SoftmaxPlusOne, softmax_plus_one

__all__ = [
    "Entmax",
    "Normaliser",
    "Sigmoid",
    "SoftmaxPlusOne",
    "entmax",
    "entmax15",
    "sigmoid",
    "softmax_plus_one",
    "sparsemax",
]
