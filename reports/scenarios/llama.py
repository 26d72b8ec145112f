"""A Llama-type decoder in NumPy float32, with this package's attention: exact but for rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import numba_sparse_attn as nsa

from .gguf import GgufFile

__all__ = ["Llama", "Scores"]

Floats = npt.NDArray[np.float32]

#: Rows of logits made at a time: 49,152 words times 512 positions are 100 MB.
_CHUNK = 512

_ATTENTION = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
_FEED_FORWARD = ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


class Scores(NamedTuple):
    """How the model took what really came next, one entry a position."""

    #: -log p of the token that came, in nats.
    loss: npt.NDArray[np.float64]
    #: Tokens that were held more likely; 0 is a hit.
    rank: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Llama:
    """Weights and sizes of a model.

    Query head h reads key head ``h // (heads // kv_heads)``. The positions' rotation turns neighboring
    elements (2i, 2i + 1) of a head, as GGUF files of this architecture have them.
    """

    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rope_base: float
    epsilon: float
    embedding: Floats
    output_norm: Floats
    layers: list[dict[str, Floats]]

    @classmethod
    def from_gguf(cls, file: GgufFile) -> Llama:
        """Decode every tensor; a model of 135 million weights takes 540 MB."""
        facts: dict[str, Any] = file.metadata
        if facts["general.architecture"] != "llama" or "output.weight" in file:
            raise ValueError(
                f"{facts['general.architecture']} with output.weight: {'output.weight' in file}; "
                "llama with tied embeddings is computed here"
            )
        heads = facts["llama.attention.head_count"]
        return cls(
            heads=heads,
            kv_heads=facts["llama.attention.head_count_kv"],
            head_dim=facts["llama.embedding_length"] // heads,
            context=facts["llama.context_length"],
            rope_base=facts["llama.rope.freq_base"],
            epsilon=facts["llama.attention.layer_norm_rms_epsilon"],
            embedding=file.tensor("token_embd.weight"),
            output_norm=file.tensor("output_norm.weight"),
            layers=[
                {name: file.tensor(f"blk.{layer}.{name}.weight") for name in _ATTENTION + _FEED_FORWARD}
                for layer in range(facts["llama.block_count"])
            ],
        )

    def hidden(
        self,
        tokens: npt.ArrayLike,
        pattern: nsa.Pattern,
        *,
        engine: str = "cpu",
        watch: Callable[[int, Floats, Floats], None] | None = None,
    ) -> Floats:
        """What the last layer says at every position, normalised: times the embedding, the logits.

        Parameters
        ----------
        tokens : int array (n,)
        pattern : Pattern
            Of shape (n, n), the same in every layer and head. It has to be causal; this is not checked,
            as the set of a long pattern is not cheap to look at.
        engine : str
            Who computes the attention; "reference" is the oracle, in double precision.
        watch : callable, optional
            Is shown the number, the queries and the keys of every layer, ``[heads, n, head_dim]``, after
            the rotation of positions.
        """
        numbers = np.asarray(tokens)
        if len(numbers) > self.context:
            raise ValueError(f"{len(numbers)} tokens; the model was trained for up to {self.context}")
        attend = nsa.plan(
            pattern, heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim, engine=engine
        )
        turn = self._rotation(len(numbers))
        state = self.embedding[numbers]
        for layer, weights in enumerate(self.layers):
            inner = self._normalised(state, weights["attn_norm"])
            q = self._turned(inner @ weights["attn_q"].T, turn)
            k = self._turned(inner @ weights["attn_k"].T, turn)
            v = (inner @ weights["attn_v"].T).reshape(len(numbers), self.kv_heads, self.head_dim)
            q, k, v = (part.transpose(1, 0, 2) for part in (q, k, v))
            if watch is not None:
                watch(layer, q, k)
            seen = attend(q, k, v)
            state += seen.transpose(1, 0, 2).reshape(len(numbers), -1) @ weights["attn_output"].T
            inner = self._normalised(state, weights["ffn_norm"])
            gate = inner @ weights["ffn_gate"].T
            # Far below zero exp overflows, and one over it is the zero that is wanted.
            with np.errstate(over="ignore"):
                gate /= 1.0 + np.exp(-gate)
            gate *= inner @ weights["ffn_up"].T
            state += gate @ weights["ffn_down"].T
        return self._normalised(state, self.output_norm)

    def logits(self, hidden: Floats) -> Floats:
        """Of every word of the vocabulary; the embedding is the output layer, too."""
        return hidden @ self.embedding.T

    def score(self, hidden: Floats, targets: npt.ArrayLike) -> Scores:
        """Losses and ranks of `targets`, one for each row of `hidden`."""
        wanted = np.asarray(targets)
        loss, rank = np.empty(len(wanted)), np.empty(len(wanted), np.int64)
        for begin in range(0, len(wanted), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            logits = self.logits(hidden[part])
            logits -= logits.max(axis=1, keepdims=True)
            own = np.take_along_axis(logits, wanted[part, None], axis=1)
            rank[part] = (logits > own).sum(axis=1)
            loss[part] = np.log(np.exp(logits, out=logits).sum(axis=1, dtype=np.float64)) - own[:, 0]
        return Scores(loss, rank)

    def _normalised(self, state: Floats, gain: Floats) -> Floats:
        mean_square = np.einsum("ij,ij->i", state, state) / state.shape[1]
        return state * (1.0 / np.sqrt(mean_square + self.epsilon)).astype(np.float32)[:, None] * gain

    def _rotation(self, count: int) -> npt.NDArray[np.complex64]:
        """exp(i * position * base**(-2 i / d)), computed in double: angles reach the thousands."""
        pace = self.rope_base ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        return np.exp(1j * np.outer(np.arange(count), pace)).astype(np.complex64)[:, None, :]

    def _turned(self, flat: Floats, turn: npt.NDArray[np.complex64]) -> Floats:
        """Neighboring elements as complex numbers, turned by their position."""
        pairs = flat.view(np.complex64).reshape(len(flat), -1, self.head_dim // 2)
        return (pairs * turn).view(np.float32)
