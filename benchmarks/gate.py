"""Nothing wrong is timed: every contender is compared with the float64 oracle before its first timing.

We have to keep the rule of :mod:`numba_sparse_attn.testing.budget`. A peer did not promise it: summing in
another order may cost it bits and is no mistake. So it is wrong only beyond `PEER_SLACK` times that budget;
in between it is timed, and its row says that it is less exact than we have to be.

Compared is one head, in full up to 512 queries and in panels of query rows beyond that: four of 64 rows on
a CPU, eight of at most 16 on a GPU, where sequences are longer and time is dear. A gradient is linear in
`dout`: with `dout` zero outside of the panels, dq, dk and dv depend on those rows alone, so the panels check
all of dk and dv. Keys that no row of the panels selects are left out of the oracle's problem; their gradient
is zero. A single row of a million keys, a global token's, is left to the tests: the oracle took minutes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_sparse_attn.testing import Budget, budget_for
from numba_sparse_attn.testing.problems import Problem

from .peers import Array, Prepared
from .workload import Workload

__all__ = ["PEER_SLACK", "Gate"]

PEER_SLACK = 16.0
#: On a CPU and on a GPU: how many panels, and the rows of each.
PANELS = {False: (4, 64), True: (8, 16)}
WHOLE = 512
#: Scores of the oracle's problem beyond which panels get fewer rows.
MOST_SCORES = 1 << 22


class Gate:
    """The check of one workload; the oracle runs once for all contenders."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._workload = workload
        generator = np.random.default_rng(seed)
        self._head = int(generator.integers(workload.kv_heads)) * (workload.heads // workload.kv_heads)
        n_q = workload.q.shape[1]
        if n_q <= WHOLE:
            self._choose([(0, n_q)])
            return
        count, panel = PANELS[workload.place.gpu]
        inner = 1 + np.sort(generator.choice(n_q // panel - 2, size=count - 2, replace=False))
        starts = [0, *(int(number) * panel for number in inner), n_q - panel]
        self._choose([(start, start + panel) for start in starts])
        while self._mask.size > MOST_SCORES and panel > 1 and workload.place.gpu:
            panel //= 2
            self._choose([*((start, start + panel) for start in starts[:-1]), (n_q - panel, n_q)])
        if self._mask.size > MOST_SCORES and workload.place.gpu:
            longest = int(self._mask.sum(axis=1).argmax())
            self._choose([bounds for number, bounds in enumerate(self._ranges) if number != longest])

    def _choose(self, ranges: list[tuple[int, int]]) -> None:
        """Rows to compare, and the keys that they select."""
        self._ranges = ranges
        self._rows = np.concatenate([np.arange(*bounds) for bounds in ranges])
        mask = self._workload.mask_rows(self._head, ranges)
        selected: npt.NDArray[np.bool_] = np.logical_or.reduce(mask, axis=0)
        selected[0] = True  # a problem without keys would be a special case of no interest
        self._keys = np.flatnonzero(selected)
        self._mask = np.ascontiguousarray(mask[:, self._keys])

    @property
    def _shared(self) -> int:
        """The key head."""
        return self._head // (self._workload.heads // self._workload.kv_heads)

    @cached_property
    def _problem(self) -> Problem:
        workload = self._workload
        fetch = workload.place.fetch
        return Problem(
            q=fetch(workload.q[self._head])[self._rows],
            k=fetch(workload.k[self._shared])[self._keys],
            v=fetch(workload.v[self._shared])[self._keys],
            dout=fetch(workload.dout[self._head])[self._rows],
            mask=self._mask,
            scale=workload.scale,
        )

    def _draw(self, seed: int) -> Budget:
        workload = self._workload
        gradients = workload.direction != "forward"
        return budget_for(self._problem, gradients=gradients, seed=seed, normaliser=workload.normaliser)

    @cached_property
    def _budget(self) -> Budget:
        return self._draw(0)

    @cached_property
    def _redrawn(self) -> Budget:
        """The budget from five times as many draws: what four draws say of long rows is left to chance."""
        budgets = [self._budget, *(self._draw(seed) for seed in range(1, 5))]
        errors = {
            name: np.concatenate([budget.low_error[name] for budget in budgets])
            for name in self._budget.low_error
        }
        return replace(self._budget, low_error=errors)

    def verdict(self, prepared: Prepared, *, slack: float = 1.0) -> str:
        """What is wrong with a contender's results, or an empty string; `slack` widens the budget."""
        if not prepared.checked or not self._failure(prepared, self._budget, slack):
            return ""
        return self._failure(prepared, self._redrawn, slack)

    def _failure(self, prepared: Prepared, budget: Budget, slack: float) -> str:
        errors = {name: error * slack for name, error in budget.low_error.items()}
        budget = replace(budget, low_error=errors)
        try:
            if self._workload.direction == "forward":
                budget.check(out=self._rows_of(prepared.forward()))
            else:
                self._check_gradients(prepared, budget)
        except AssertionError as error:
            return str(error)
        return ""

    def _rows_of(self, array: Any) -> Array:
        """The compared rows of an array with a row a query."""
        found: Array = self._workload.place.fetch(array[self._head])[self._rows]
        return found

    def _check_gradients(self, prepared: Prepared, budget: Budget) -> None:
        workload = self._workload
        dout = workload.place.zeros_like(workload.dout)
        for begin, end in self._ranges:
            dout[self._head, begin:end] = workload.dout[self._head, begin:end]
        if workload.direction == "training":
            assert prepared.training is not None
            out, *gradients = prepared.training(dout)
            budget.check(out=self._rows_of(out))
        else:
            assert prepared.backward is not None
            gradients = list(prepared.backward(dout))
        heads = (self._head, self._shared, self._shared)
        chosen = (self._rows, self._keys, self._keys)
        for name, gradient, head, inside in zip(("dq", "dk", "dv"), gradients, heads, chosen, strict=True):
            whole = workload.place.fetch(gradient[head])
            budget.check(**{name: whole[inside]})
            if np.delete(whole, inside, axis=0).any():
                raise AssertionError(f"{name}: not zero in rows that no compared query touches")
