"""Gates on blocks: the gradient of a loss goes through a choice of blocks to the predictor's parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from ..arrays import check_arrays, check_gradient, check_scale, host_array
from ..errors import ArgumentError, ShapeError
from ..patterns._arguments import check_flag, check_int, title
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from ._blocks import Blocks
from ._call import Call, Floats
from ._panels import scores_of
from .block_masses import by_head, sums_by_block
from .block_predictor import BlockPredictor

__all__ = ["Gates", "block_gates", "gate_gradients"]


@dataclass(frozen=True, eq=False)
class Gates:
    """A choice of blocks that gradients go through.

    Attributes
    ----------
    values : array (..., heads, blocks of queries, blocks of keys)
        1 for every chosen block and 0 for all others; between the two where gates are soft.
    pattern : Pattern or HeadPatterns
        The chosen blocks: what :func:`learned_blocks` selects.
    pullback : callable
        Gradients of the predictor's parameters, by name, from the gradient of the values. To be called before
        the parameters change.
    """

    values: Floats
    pattern: Pattern | HeadPatterns
    pullback: Callable[[Any], dict[str, Floats]]


def block_gates(
    q: Any,
    k: Any,
    predictor: BlockPredictor,
    budget: Any,
    *,
    temperature: float = 1.0,
    hard: bool = True,
    first: int = 0,
    local: int = 1,
    causal: bool = False,
) -> Gates:
    """The choice of :func:`learned_blocks` as gates, with a straight-through way back.

    ::

        soft gate of blocks a, b = sigmoid((score of a, b - threshold of a) / temperature)
        threshold of a = the middle between the smallest score that is chosen and the largest that is not

    A hard gate is 1 where the soft one is above a half, and 0 elsewhere; the way back is that of the soft
    gate, threshold included, so that the gradients of a row's scores add up to 0: what one block gains
    another one loses, as the budget has it. Blocks that are always in have a gate of 1 and no gradient, and
    neither has a row whose choice the budget leaves no room for.

    Parameters
    ----------
    q, k, predictor, budget, first, local, causal
        As in :func:`learned_blocks`, with a number of blocks for a budget.
    temperature : float or sequence of float
        Above 0; nats of predicted log mass over which a soft gate opens; one number, or one for every query
        head.
    hard : bool
        Whether the values are 0 and 1, or those of the soft gates.

    Returns
    -------
    Gates

    Examples
    --------
    One step of fine-tuning, here towards the outputs of dense attention:

    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 64, 16))
    >>> predictor = nsa.dynamic.BlockPredictor.create(16, 8, heads=2)
    >>> adam = nsa.dynamic.Adam(predictor.parameters)
    >>> gates = nsa.dynamic.block_gates(q, k, predictor, 3, causal=True)
    >>> out, lse = nsa.sparse_attention(q, k, v, gates.pattern, return_lse=True)
    >>> dout = out - nsa.sparse_attention(q, k, v, nsa.patterns.causal(64))
    >>> dgates = nsa.dynamic.gate_gradients(dout, q, k, v, out, lse, 8, causal=True)
    >>> adam.step(gates.pullback(dgates), rate=1e-3)
    """
    hard = check_flag("hard", hard)
    call = predictor.call(q, k, causal)
    temperatures = call.per_head_float("temperature", temperature)
    if not min(temperatures) > 0.0:
        raise ArgumentError(f"temperature={temperature!r}", "numbers above 0", "pass 1.0")
    budgets = call.per_head("budget", budget, low=1)
    choice = predictor.blocks(call, first=check_int("first", first), local=check_int("local", local, low=1))
    summaries = [predictor.summary(call, batch) for batch in range(len(call.q))]
    made = [
        [
            _HeadGates(choice, *of_head)
            for of_head in zip(predictor.scores(summary), budgets, temperatures, strict=True)
        ]
        for summary in summaries
    ]
    shape = predictor.counts(call)
    values = by_head(call, shape, lambda batch, head: made[batch][head].values(hard))

    def pullback(dvalues: Any) -> dict[str, Floats]:
        given = np.asarray(dvalues, call.q.dtype)
        if given.shape != values.shape:
            raise ShapeError(
                f"a gradient of shape {given.shape}", f"shape {values.shape}", "pass that of the values"
            )
        of_heads = given.reshape(len(made), call.heads, *shape)
        total = {name: np.zeros_like(value) for name, value in predictor.parameters.items()}
        for summary, gates, of_batch in zip(summaries, made, of_heads, strict=True):
            dscores = np.stack([one.pullback(of_one) for one, of_one in zip(gates, of_batch, strict=True)])
            for name, gradient in predictor.pullback(summary, dscores).items():
                total[name] += gradient
        return total

    name = title(
        block_gates,
        predictor=predictor,
        budget=budget,
        temperature=temperature,
        hard=hard,
        first=first,
        local=local,
        causal=causal,
    )
    pattern = choice.patterns([one.chosen for of_batch in made for one in of_batch], name)
    return Gates(values, pattern, pullback)


class _HeadGates:
    """The gates of one head.

    Attributes
    ----------
    chosen : int32 [query blocks, most blocks]
        As :class:`Blocks` lists them.
    """

    def __init__(self, choice: Blocks, scores: Floats, budget: int, temperature: float) -> None:
        count = scores.shape[1]
        self.chosen = choice.over_panels(count, budget, lambda rows: scores[rows].copy())
        reached = np.arange(count) < choice.reach[:, None]
        always = reached & choice.always(slice(None), count)
        candidates = reached & ~always
        room = np.clip(budget - choice.forced, 0, candidates.sum(axis=1))
        # The last that is chosen and the first that is not, among the blocks that compete.
        ranked = np.where(candidates & ~np.isnan(scores), scores, -np.inf)
        order = np.argsort(-ranked, axis=1, kind="stable")
        rows = np.flatnonzero((room > 0) & (room < candidates.sum(axis=1)))
        edge = np.take_along_axis(order[rows], room[rows, None] + np.array([-1, 0]), axis=1)
        threshold = np.take_along_axis(ranked[rows], edge, axis=1).mean(axis=1, keepdims=True)
        # Between scores that are not numbers there is no threshold to move.
        some = np.isfinite(threshold[:, 0])
        self._rows, self._edge, self._temperature = rows[some], edge[some], temperature
        self._hard = np.zeros(scores.shape, scores.dtype)
        row, place = np.nonzero(self.chosen >= 0)
        self._hard[row, self.chosen[row, place]] = 1.0
        with np.errstate(over="ignore"):
            opened = expit((ranked[self._rows] - threshold[some]) / scores.dtype.type(temperature))
        self._soft = self._hard.copy()
        self._soft[self._rows] = np.where(candidates[self._rows], opened, self._hard[self._rows])
        self._slope = np.where(candidates[self._rows], opened * (1.0 - opened), 0.0)

    def values(self, hard: bool) -> Floats:
        """0 and 1, or what a sigmoid makes of the scores."""
        return self._hard if hard else self._soft

    def pullback(self, dvalues: Floats) -> Floats:
        """Gradient of the scores, through the soft gates and their threshold."""
        dscores = np.zeros_like(dvalues)
        # A block of NaN has a gradient of NaN, and a gate that does not move.
        given = np.where(self._slope != 0.0, dvalues[self._rows], 0.0)
        moved = given * self._slope / dvalues.dtype.type(self._temperature)
        of_threshold = np.repeat(-0.5 * moved.sum(axis=1, keepdims=True), 2, axis=1)
        found = np.take_along_axis(moved, self._edge, axis=1) + of_threshold
        np.put_along_axis(moved, self._edge, found, axis=1)
        dscores[self._rows] = moved
        return dscores


def gate_gradients(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    block: int,
    *,
    query_block: int | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Floats:
    """Gradient of a loss with respect to gates on blocks: also to those of blocks that were not chosen.

    ::

        out_i = sum over j of g_ab e_ij v_j / sum over j of g_ab e_ij,  e_ij = exp(scale * q_i . k_j)
        gradient of g_ab = sum over i in a, j in b of exp(scale * q_i . k_j - lse_i) * dout_i . (v_j - out_i)

    with lse the logarithm of the sum below, the gates in it. Gates of 0 and 1 are attention over a pattern,
    whose out and lse go in here: nothing else of the gates is needed. It takes the time of dense attention,
    a panel of queries at a time, as a block that is not chosen has to say what it would have changed. Where
    it outweighs all that was chosen, its gradient is as large: :class:`Adam` clips.

    Parameters
    ----------
    dout : array (..., heads, n_q, d_v)
        Gradient of the loss with respect to `out`.
    q, k, v
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host memory.
    out, lse
        What that returned with ``return_lse=True`` for the pattern of the gates.
    block, query_block : int
        Keys and queries in a block; as many of both if only one is given.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` are seen.
    scale : float, optional
        Factor on q k^T; ``1 / sqrt(d)`` if not given.

    Returns
    -------
    array (..., heads, blocks of queries, blocks of keys)
        float32, float64 for float64. A query that saw no key takes no part.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((2, 4))
    >>> v = np.array([[1.0], [3.0]])
    >>> out, lse = nsa.sparse_attention(q, k, v, nsa.patterns.sliding_window(2, 0), return_lse=True)
    >>> dout = np.ones((2, 1))
    >>> nsa.dynamic.gate_gradients(dout, q, k, v, out, lse, 1).tolist()  # the other key would move it by 2
    [[0.0, 2.0], [-2.0, 0.0]]
    """
    call = Call.of(q, k, causal)
    given = [host_array(array, name) for array, name in ((q, "q"), (k, "k"), (v, "v"))]
    sizes = check_arrays(*given)
    block = check_int("block", block, low=1)
    rows = block if query_block is None else check_int("query_block", query_block, low=1)
    factor = check_scale(scale, sizes.head_dim)
    shape = (*given[0].shape[:-1], sizes.value_dim)
    kind = call.q.dtype

    def heads_first(array: Any, width: int) -> Floats:
        return array.reshape(sizes.batch, -1, array.shape[-2], width).astype(kind, copy=False)

    values = heads_first(given[2], sizes.value_dim)
    outs, douts = (
        heads_first(check_gradient(host_array(array, name), shape, given[0].dtype, name), sizes.value_dim)
        for array, name in ((out, "out"), (dout, "dout"))
    )
    sums = host_array(lse, "lse")
    if sums.shape != shape[:-1]:
        raise ShapeError(
            f"lse with shape {sums.shape}", f"shape {shape[:-1]}", "pass the lse of the same call"
        )
    # A weight larger than the root of the largest number is cut to that: sums of such stay finite.
    highest = kind.type(0.5 * np.log(np.finfo(kind).max))
    lses = sums.reshape(sizes.batch, -1, sizes.n_q, 1).astype(kind, copy=False)

    def gradients(batch: int, head: int) -> Floats:
        queries, keys = call.queries(batch, head), call.keys(batch, head)
        own = values[batch, head // call.group]
        total, result, given = lses[batch, head], outs[batch, head], douts[batch, head]
        mean = np.einsum("nd,nd->n", given, result)[:, None]

        def pairs(panel: slice) -> Floats:
            limits = call.visible[panel]
            with np.errstate(all="ignore"):
                above = factor * scores_of(queries[panel], keys, limits) - total[panel]
                weights = np.exp(np.minimum(above, highest, out=above), out=above)
                found = weights * (given[panel] @ own[: weights.shape[1]].T - mean[panel])
            unseen = np.arange(found.shape[1]) >= limits[:, None]
            found[unseen | np.isneginf(total[panel])] = 0.0
            return found

        return sums_by_block(call, block, rows, pairs)

    return by_head(call, (-(-call.n_q // rows), -(-call.n_k // block)), gradients)
