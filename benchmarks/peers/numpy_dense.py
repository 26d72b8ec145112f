"""Dense masked attention in plain NumPy: what one writes without any library. Computes all pairs."""

from __future__ import annotations

import numpy as np

from ..workload import Workload
from . import Array, Prepared

__all__ = ["Peer"]

LONGEST = 8192


class Peer:
    """Scores, mask, softmax, product; one head at a time."""

    name = "numpy_dense"

    def why_absent(self) -> str:
        """NumPy is always there."""
        return ""

    def why_not(self, workload: Workload) -> str:
        """An n x n array has to fit."""
        if max(workload.pattern.shape) > LONGEST:
            return f"forms n x n arrays; measured up to n = {LONGEST}"
        return ""

    def version(self) -> dict[str, str]:
        """NumPy."""
        return {"numpy": np.__version__}

    def prepare(self, workload: Workload) -> Prepared:
        """Nothing to compile; the mask is made beforehand."""
        q, k, v, masks, scale = workload.q, workload.k, workload.v, workload.masks, workload.scale
        group = workload.heads // workload.kv_heads
        accumulator = np.float64 if q.dtype == np.float64 else np.float32

        def weights(head: int) -> Array:
            scores = q[head].astype(accumulator) @ k[head // group].astype(accumulator).T
            scores *= accumulator(scale)
            scores[~masks[head % len(masks)]] = -np.inf
            peak = scores.max(axis=1, keepdims=True)
            peak[~np.isfinite(peak)] = 0
            scores -= peak
            np.exp(scores, out=scores)
            total = scores.sum(axis=1, keepdims=True)
            total[total == 0] = 1
            scores /= total
            return scores

        def forward() -> Array:
            out = np.empty((*q.shape[:2], workload.value_dim), q.dtype)
            for head in range(workload.heads):
                out[head] = weights(head) @ v[head // group].astype(accumulator)
            return out

        trained = workload.heads if workload.direction == "backward" else 0
        probabilities = [weights(head) for head in range(trained)]

        def backward(dout: Array) -> tuple[Array, Array, Array]:
            dq, dk, dv = (np.zeros(array.shape, accumulator) for array in (q, k, v))
            for head, p in enumerate(probabilities):
                shared, incoming = head // group, dout[head].astype(accumulator)
                ds = incoming @ v[shared].astype(accumulator).T
                ds -= (ds * p).sum(axis=1, keepdims=True)
                ds *= p
                ds *= accumulator(scale)
                dq[head] = ds @ k[shared].astype(accumulator)
                dk[shared] += ds.T @ q[head].astype(accumulator)
                dv[shared] += p.T @ incoming
            return dq.astype(q.dtype), dk.astype(q.dtype), dv.astype(q.dtype)

        return Prepared(forward, backward)
