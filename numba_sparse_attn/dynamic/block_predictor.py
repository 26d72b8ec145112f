"""A predictor of block masses: attention between blocks, guessed from a summary of each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import arrays
from ..errors import ArgumentError, FormatError, ShapeError
from ..formats.npz import read_arrays
from ..patterns._arguments import check_int
from ..patterns._spans import blocks
from ._blocks import Blocks
from ._call import Call, Floats, Integers
from ._panels import softmax_rows
from ._tools import extremes_of_blocks, mean_of_blocks
from .adam import Adam
from .block_masses import block_masses, by_head

__all__ = ["BlockPredictor", "Lesson", "Summary"]

#: Distances in blocks at which a next step of the learned term begins: two steps an octave, up to 2**20.
_STEPS = np.unique(np.rint(2.0 ** (np.arange(41) / 2)).astype(np.int64))
#: What a file says that it is.
_KIND = "numba_sparse_attn.BlockPredictor 1"
#: Learning rate and steps that held out text was predicted best with, of 18 combinations on SmolLM2-135M: a
#: third of the rate leaves something to learn, more steps learn the training texts by heart.
_RATE, _TRAINING_STEPS = 3e-3, 150


@dataclass(frozen=True, eq=False)
class Summary:
    """What a predictor sees of one batch element.

    Attributes
    ----------
    queries : [heads, query blocks, 3 * d]
        Mean, maxima and minima of every block.
    keys : [heads, blocks of keys, 3 * d]
    place : int64 [query blocks]
        Block of keys in which the last of the queries stands; negative before the first.
    reach : int64 [query blocks]
        Blocks of keys, from the first on, that may be seen.
    """

    queries: Floats
    keys: Floats
    place: Integers
    reach: Integers


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a predictor learns from one batch element.

    Attributes
    ----------
    summary : Summary
    masses : [heads, query blocks, blocks of keys]
        Of dense attention: what is to be predicted.
    """

    summary: Summary
    masses: Floats


class BlockPredictor:
    """Predicts which blocks of keys a block of queries attends to: two linear maps and a term of distance.

    ::

        log mass of blocks a, b = u_a . w_b + distance[step of place(a) - b] + start * [b is the first] - Z_a
        u_a = query_weight^T summary(q over a) + query_bias,  w_b = key_weight^T summary(k over b) + key_bias

    A summary holds mean, maxima and minima of every channel, place(a) is the block of keys in which the last
    query of a stands, steps are half octaves, and Z_a makes the masses of a row add up to 1.

    Parameters
    ----------
    parameters : mapping of arrays
        By name as in the formula, float32 or float64, all with a leading axis of as many heads as there are
        query heads, or of 1 if all heads share them. They are copied.
    block : int
        Keys in a block, at least 1.
    query_block : int, optional
        Queries in a block; as many as keys if not given.

    Attributes
    ----------
    parameters : dict of arrays
        Those of the predictor itself: an optimiser may change them in place.
    heads : int
        1 if all heads share the parameters.
    head_dim, block, query_block : int

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k = np.random.default_rng(0).standard_normal((2, 4, 64, 16))
    >>> predictor = nsa.dynamic.BlockPredictor.create(16, 8, heads=4)
    >>> losses = predictor.fit(predictor.lessons(q, k, causal=True))
    >>> losses[-1] < losses[0]
    True
    >>> nsa.dynamic.learned_blocks(q, k, predictor, 3, causal=True).shape
    (64, 64)
    """

    def __init__(self, parameters: Mapping[str, Any], block: int, *, query_block: int | None = None) -> None:
        self.block = check_int("block", block, low=1)
        self.query_block = self.block if query_block is None else check_int("query_block", query_block, low=1)
        self.parameters = _checked(parameters)
        self.heads, _, self.head_dim = map(int, self.parameters["query_weight"].shape)

    @classmethod
    def create(
        cls,
        head_dim: int,
        block: int,
        *,
        heads: int = 1,
        query_block: int | None = None,
        scale: float | None = None,
        dtype: Any = np.float32,
    ) -> BlockPredictor:
        """One to begin training with: its scores are those of :func:`block_top_k`.

        Parameters
        ----------
        head_dim : int
            Channels of q and k.
        block, query_block : int
            Keys and queries in a block.
        heads : int
            Query heads with parameters of their own; 1 for parameters that any number of heads shares.
        scale : float, optional
            Of the attention that is to be predicted; ``1 / sqrt(head_dim)`` if not given.
        dtype : float32 or float64

        Examples
        --------
        >>> BlockPredictor.create(64, 128, heads=8)
        BlockPredictor(heads=8, head_dim=64, block=128, query_block=128)
        """
        head_dim, heads = check_int("head_dim", head_dim, low=1), check_int("heads", heads, low=1)
        made = {name: np.zeros((heads, *shape), dtype) for name, shape in _shapes(head_dim).items()}
        # From random weights, of 16 channels, the KL divergence on held out text stays three times as large
        # (1.0 and 0.3 nats; layers 8 and 18 of SmolLM2-135M, three texts learned from, 300 steps).
        # Half of the scale is on either side, so that the rate of learning fits both.
        factor = arrays.check_scale(scale, head_dim)
        channels = np.arange(head_dim)
        made["query_weight"][:, channels, channels] = math.copysign(math.sqrt(abs(factor)), factor)
        made["key_weight"][:, channels, channels] = math.sqrt(abs(factor))
        return cls(made, block, query_block=query_block)

    def __repr__(self) -> str:
        sizes = ("heads", "head_dim", "block", "query_block")
        return f"BlockPredictor({', '.join(f'{name}={getattr(self, name)}' for name in sizes)})"

    def predict(self, q: Any, k: Any, *, causal: bool = False) -> Floats:
        """Predicted :func:`block_masses`, ``(..., heads, blocks of queries, blocks of keys)``.

        Examples
        --------
        >>> import numpy as np
        >>> q = k = np.zeros((4, 8))
        >>> BlockPredictor.create(8, 2).predict(q, k, causal=True).tolist()
        [[1.0, 0.0], [0.5, 0.5]]
        """
        call = self.call(q, k, causal)
        return by_head(call, self.counts(call), lambda batch, head: self.masses(call, batch, head))

    def masses(self, call: Call, batch: int, head: int) -> Floats:
        """What :meth:`predict` gives for one head."""
        return softmax_rows(self.scorer(call, batch, head)(slice(None)), self.blocks(call).reach)

    def lessons(self, q: Any, k: Any, *, causal: bool = False, scale: float | None = None) -> list[Lesson]:
        """What there is to learn from a sequence, or from every element of a batch: a few numbers a block.

        Parameters
        ----------
        q, k : arrays
            As a selection takes them.
        causal : bool
        scale : float, optional
            Of the attention to be predicted.

        Returns
        -------
        list of Lesson
            One a batch element. They do not depend on the parameters, only on the sizes of blocks.
        """
        call = self.call(q, k, causal)
        masses = block_masses(
            q, k, self.block, query_block=self.query_block, causal=causal, scale=scale
        ).reshape(len(call.q), call.heads, *self.counts(call))
        summaries = [self.summary(call, batch) for batch in range(len(masses))]
        if not all(np.isfinite(one.queries).all() and np.isfinite(one.keys).all() for one in summaries):
            raise ArgumentError(
                "q or k with NaN or infinity", "finite numbers to learn from", "leave those tokens out"
            )
        return [Lesson(*both) for both in zip(summaries, masses, strict=True)]

    def fit(
        self, lessons: Sequence[Lesson], *, steps: int = _TRAINING_STEPS, rate: float = _RATE
    ) -> list[float]:
        """Learn the block masses of dense attention by Adam.

        Parameters
        ----------
        lessons : sequence of Lesson
            Of several sequences, of any lengths; one after the other, over and over.
        steps : int
        rate : float
            Of learning at first; it falls to 0 as a cosine does.

        Returns
        -------
        list of float
            Before every step, the cross-entropy of the true masses with the predicted ones in nats: a mean
            over blocks of queries and heads.
        """
        steps = check_int("steps", steps)
        if steps and not lessons:
            raise ArgumentError("no lessons", "at least one", "pass those of some sequence")
        # Clipping would let one head's gradient scale down those of the others.
        adam, losses = Adam(self.parameters, clip=math.inf), []
        for step in range(steps):
            loss, gradients = self.loss(lessons[step % len(lessons)])
            adam.step(gradients, rate * 0.5 * (1.0 + math.cos(math.pi * step / steps)))
            losses.append(loss)
        return losses

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.npz`` file that :meth:`load` reads.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "predictor.npz"
        >>> BlockPredictor.create(64, 128).save(path)
        >>> BlockPredictor.load(path)
        BlockPredictor(heads=1, head_dim=64, block=128, query_block=128)
        """
        sizes = np.array([self.block, self.query_block])
        stored: dict[str, Any] = {"kind": np.array(_KIND), "blocks": sizes, **self.parameters}
        with open(path, "wb") as file:
            np.savez(file, **stored)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BlockPredictor:
        """Read a file of :meth:`save`; anything else is refused, and pickled objects are never loaded."""
        stored = read_arrays(path, "a file written by BlockPredictor.save", "train the predictor and save it")
        name, sizes = os.path.basename(path), stored.pop("blocks", np.zeros(0))
        kind = stored.pop("kind", np.array("none")).tolist()
        if kind != _KIND or sizes.shape != (2,) or sizes.dtype.kind not in "iu":
            raise FormatError(
                f"{name} of kind {kind!r} with {sizes.size} sizes of blocks",
                f"a file of kind {_KIND!r} with two sizes",
                "write it again with BlockPredictor.save",
            )
        return cls(stored, int(sizes[0]), query_block=int(sizes[1]))

    # From here on, what selections and gates ask of it.

    def call(self, q: Any, k: Any, causal: Any) -> Call:
        """The checked arrays, if this predictor is for such."""
        call = Call.of(q, k, causal)
        width = int(call.q.shape[-1])
        if width != self.head_dim or self.heads not in (1, call.heads):
            raise ShapeError(
                f"{call.heads} query heads of {width} channels for {self}",
                f"{'any number of' if self.heads == 1 else self.heads} heads of {self.head_dim} channels",
                "train a predictor for these heads",
            )
        return call

    def counts(self, call: Call) -> tuple[int, int]:
        """(blocks of queries, blocks of keys)."""
        return -(-call.n_q // self.query_block), -(-call.n_k // self.block)

    def blocks(self, call: Call, *, first: int = 0, local: int = 1) -> Blocks:
        """The blocks that choose and are chosen among."""
        return Blocks(call, self.block, query_block=self.query_block, first=first, local=local)

    def summary(self, call: Call, batch: int, heads: slice = slice(None)) -> Summary:
        """What is looked at of some heads of a batch element."""
        chosen = range(call.heads)[heads]
        last = blocks(call.n_q, self.query_block)[1] - 1 + call.offset
        # Tokens may hold NaN and infinity; what comes of them is looked at by who ranks the scores.
        with np.errstate(all="ignore"):
            queries = [_features(call.queries(batch, head), self.query_block) for head in chosen]
            keys = [_features(call.keys(batch, head), self.block) for head in chosen]
        reach = self.blocks(call).reach
        return Summary(np.stack(queries), np.stack(keys), last // self.block, reach)

    def scorer(self, call: Call, batch: int, head: int) -> Callable[[slice], Floats]:
        """Scores of one head for some blocks of queries and all of keys, as :meth:`scores` has them."""
        summary = self.summary(call, batch, slice(head, head + 1))
        own = self._parameters(summary, slice(None) if self.heads == 1 else slice(head, head + 1))
        queries, keys = _projected(own, summary)
        return lambda rows: _scores(own, queries[:, rows], keys, summary.place[rows])[0]

    def scores(self, summary: Summary) -> Floats:
        """``[heads, query blocks, blocks of keys]``: log masses but for a constant a row; of all keys."""
        own = self._parameters(summary)
        return _scores(own, *_projected(own, summary), summary.place)

    def pullback(self, summary: Summary, dscores: Floats) -> dict[str, Floats]:
        """Gradients of the parameters, from those of all scores: 0 where a score is no number."""
        seen = replace(summary, queries=_finite(summary.queries), keys=_finite(summary.keys))
        queries, keys = _projected(self._parameters(seen), seen)
        of_queries, of_keys = dscores @ keys, dscores.swapaxes(-1, -2) @ queries
        steps = _steps(summary.place, keys.shape[1]).reshape(-1)
        count = self.parameters["distance"].shape[1]
        by_head = {
            "query_weight": seen.queries.swapaxes(-1, -2) @ of_queries,
            "query_bias": of_queries.sum(axis=1),
            "key_weight": seen.keys.swapaxes(-1, -2) @ of_keys,
            "key_bias": of_keys.sum(axis=1),
            "distance": np.stack([np.bincount(steps, one.reshape(-1), count) for one in dscores]),
            "start": dscores[..., :1].sum(axis=1),
        }
        return {
            name: (gradient.sum(axis=0, keepdims=True) if self.heads == 1 else gradient).astype(
                self.parameters[name].dtype, copy=False
            )
            for name, gradient in by_head.items()
        }

    def loss(self, lesson: Lesson) -> tuple[float, dict[str, Floats]]:
        """Cross-entropy of true masses with the predicted ones, a mean over rows, and its gradients.

        The mean over heads is the first result; gradients are those of the sum over heads, so that a head
        learns as if there was no other.
        """
        summary, masses = lesson.summary, lesson.masses
        scores = self.scores(summary)
        seen = np.arange(scores.shape[2]) < summary.reach[:, None]
        with np.errstate(divide="ignore"):
            peak = np.where(seen, scores, -np.inf).max(axis=2, keepdims=True, initial=-1e30)
            powers = np.where(seen, np.exp(np.minimum(scores - peak, 0.0)), 0.0)
            totals = powers.sum(axis=2, keepdims=True)
            logs = np.where(seen, scores - peak - np.log(totals), 0.0)
        rows = scores.dtype.type(max(scores.shape[1], 1))
        predicted = np.divide(powers, totals, out=np.zeros_like(powers), where=totals > 0.0)
        dscores = (masses.sum(axis=2, keepdims=True) * predicted - masses) / rows
        return float(-(masses * logs).sum() / rows / len(scores)), self.pullback(summary, dscores)

    def _parameters(self, summary: Summary, heads: slice = slice(None)) -> dict[str, Floats]:
        kind = summary.queries.dtype
        return {name: value[heads].astype(kind, copy=False) for name, value in self.parameters.items()}


def _shapes(head_dim: int) -> dict[str, tuple[int, ...]]:
    """Of the parameters of one head."""
    return {
        "query_weight": (3 * head_dim, head_dim),
        "query_bias": (head_dim,),
        "key_weight": (3 * head_dim, head_dim),
        "key_bias": (head_dim,),
        "distance": (2 * len(_STEPS) + 1,),
        "start": (1,),
    }


def _checked(parameters: Mapping[str, Any]) -> dict[str, Floats]:
    """Copies, if they are those of a predictor."""
    made = {name: np.array(value) for name, value in parameters.items()}
    first = made.get("query_weight", np.zeros(0))
    heads, width = (first.shape[0], first.shape[-1]) if first.ndim == 3 else (0, 0)
    wanted = {name: (heads, *shape) for name, shape in _shapes(width).items()}
    fits = {name: value.shape for name, value in made.items()} == wanted and heads > 0 and width > 0
    kinds = {value.dtype for value in made.values()}
    if not fits or len(kinds) != 1 or kinds.pop() not in (np.float32, np.float64):
        given = ", ".join(f"{name} {value.dtype.name} {value.shape}" for name, value in made.items())
        raise FormatError(
            f"parameters of a predictor {given or 'none'}",
            "float32 or float64 arrays with the names and shapes that BlockPredictor.create makes",
            "change values only",
        )
    if not all(np.isfinite(value).all() for value in made.values()):
        raise FormatError(
            "parameters of a predictor that are not finite", "finite numbers", "train with a lower rate"
        )
    return made


def _features(rows: Floats, block: int) -> Floats:
    """Mean, maxima and minima of every `block` rows, ``[blocks, 3 * d]``."""
    return np.concatenate([mean_of_blocks(rows, block), extremes_of_blocks(rows, block)], axis=1)


def _finite(values: Floats) -> Floats:
    """Zeros in place of NaN and infinity, which times a gradient of 0 would not be 0."""
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _projected(own: Mapping[str, Floats], summary: Summary) -> tuple[Floats, Floats]:
    with np.errstate(all="ignore"):
        queries = summary.queries @ own["query_weight"] + own["query_bias"][:, None]
        return queries, summary.keys @ own["key_weight"] + own["key_bias"][:, None]


def _scores(own: Mapping[str, Floats], queries: Floats, keys: Floats, place: Integers) -> Floats:
    with np.errstate(all="ignore"):
        found = queries @ keys.swapaxes(-1, -2)
    found += own["distance"][:, _steps(place, keys.shape[1])]
    found[..., :1] += own["start"][..., None]
    return np.asarray(found)


def _steps(place: Integers, count: int) -> Integers:
    """Step of the distance from a place to each of the first `count` blocks, ``[places, count]``."""
    distance = place[:, None] - np.arange(count)
    ahead = np.searchsorted(_STEPS, -distance, side="right") + len(_STEPS)
    return np.where(distance < 0, ahead, np.searchsorted(_STEPS, distance, side="right"))
