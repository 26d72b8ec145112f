"""Changes of scores on their way to the softmax: ``sparse_attention(..., scores=change)``.

Several changes are applied in the order in which they are given: ``scores=(alibi(8), softcap(30.0))`` caps
the sum. The backward pass through changes with parameters to learn returns a fourth item, a tuple as long as
``scores``: the gradient of each change's parameters, in their form and type, and None for changes that have
none or are not learnable. Without such changes it returns three items, as ever.

>>> import numpy as np, numba_sparse_attn as nsa
>>> q, k, v = np.random.default_rng(0).standard_normal((3, 4, 64, 16))
>>> scores = nsa.scores.alibi(4), nsa.scores.softcap(30.0), nsa.scores.sink(np.zeros(4))
>>> out, pullback = nsa.vjp(q, k, v, nsa.patterns.causal(64), scores=scores)
>>> dq, dk, dv, gradients = pullback(np.ones_like(out))
>>> [None if gradient is None else gradient.shape for gradient in gradients]
[None, None, (4,)]
"""

from ._change import Change
from .alibi import alibi
from .bias import bias
from .modify import modify
from .relative import relative
from .sink import sink
from .softcap import softcap

__all__ = ["Change", "alibi", "bias", "modify", "relative", "sink", "softcap"]
