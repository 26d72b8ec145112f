"""Nothing wrong is timed: every contender is compared with the float64 oracle before its first timing.

We have to keep the rule of :mod:`numba_sparse_attn.testing.budget`. A peer did not promise it: summing in
another order may cost it bits and is no mistake. So it is wrong only beyond `PEER_SLACK` times that budget;
in between it is timed, and its row says that it is less exact than we have to be.

Compared is one head, in full up to 512 queries and in four panels of 64 query rows beyond that. A
gradient is linear in `dout`: with `dout` zero outside of the panels, dq, dk and dv depend on those rows
alone, so the panels check all of dk and dv.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from numba_sparse_attn.testing import Budget, budget_for
from numba_sparse_attn.testing.problems import Problem

from .peers import Array, Prepared
from .workload import Workload

__all__ = ["PEER_SLACK", "Gate"]

PEER_SLACK = 16.0
PANEL = 64
WHOLE = 512


class Gate:
    """The check of one workload; the oracle runs once for all contenders."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._workload = workload
        generator = np.random.default_rng(seed)
        self._head = int(generator.integers(workload.kv_heads)) * (workload.heads // workload.kv_heads)
        n_q = workload.q.shape[1]
        if n_q <= WHOLE:
            self._ranges = [(0, n_q)]
        else:
            inner = 1 + np.sort(generator.choice(n_q // PANEL - 2, size=2, replace=False))
            starts = [0, *(int(panel) * PANEL for panel in inner), n_q - PANEL]
            self._ranges = [(start, start + PANEL) for start in starts]
        self._rows = np.concatenate([np.arange(*bounds) for bounds in self._ranges])

    @cached_property
    def _problem(self) -> Problem:
        workload, head = self._workload, self._head
        shared = head // (workload.heads // workload.kv_heads)
        return Problem(
            q=workload.q[head, self._rows],
            k=workload.k[shared],
            v=workload.v[shared],
            dout=workload.dout[head, self._rows],
            mask=workload.mask_rows(head, self._ranges),
            scale=workload.scale,
        )

    def _draw(self, seed: int) -> Budget:
        return budget_for(self._problem, gradients=self._workload.direction == "backward", seed=seed)

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
                budget.check(out=prepared.forward()[self._head, self._rows])
            else:
                self._check_gradients(prepared, budget)
        except AssertionError as error:
            return str(error)
        return ""

    def _check_gradients(self, prepared: Prepared, budget: Budget) -> None:
        assert prepared.backward is not None
        head, rows = self._head, self._rows
        shared = head // (self._workload.heads // self._workload.kv_heads)
        dout = np.zeros_like(self._workload.dout)
        dout[head, rows] = self._workload.dout[head, rows]
        dq, dk, dv = prepared.backward(dout)
        budget.check(dq=dq[head, rows], dk=dk[shared], dv=dv[shared])
        outside: Array = np.delete(dq[head], rows, axis=0)
        if outside.any():
            raise AssertionError("dq: not zero in rows where dout is zero")
