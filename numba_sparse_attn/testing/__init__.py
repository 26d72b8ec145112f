"""Helpers for testing attention: problems, error budgets, NaN poison, stored patterns.

``numba_sparse_attn.testing.strategies`` has the Hypothesis strategies; it is imported on its own, so
that everything else here works without Hypothesis. The package itself never imports this sub-package.
"""

from .agreement import dirty_memory, request_for, run_call, run_engine
from .budget import Budget, assert_within_budget, budget_for, low_precision_attention
from .golden import assert_golden, write_golden
from .poison import assert_margins_untouched, nan_filled, poisoned, surrounded
from .problems import DTYPES, Problem, random_problem

__all__ = [
    "DTYPES",
    "Budget",
    "Problem",
    "assert_golden",
    "assert_margins_untouched",
    "assert_within_budget",
    "budget_for",
    "dirty_memory",
    "low_precision_attention",
    "nan_filled",
    "poisoned",
    "random_problem",
    "request_for",
    "run_call",
    "run_engine",
    "surrounded",
    "write_golden",
]
