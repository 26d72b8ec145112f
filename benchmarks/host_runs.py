"""Measured on the host besides attention: the machine's rates, planning, selecting, the cost of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import numba_sparse_attn as nsa
from numba_sparse_attn.dynamic.catalogue import SELECTIONS

from . import measure
from .kinds import HostCase, PlanCase, RateCase, SelectCase
from .peers.numpy_sgemm import prepare_product, product_flops
from .peers.own import Own
from .rows import Row
from .workload import Host, Workload, make_workload

__all__ = ["calls_of", "host_cost", "planning", "rate", "selecting"]

FEWEST_PLANS, MOST_PLANS = 5, 50


def rate(case: RateCase, seconds: float) -> tuple[str, Row]:
    """A matrix product by NumPy's BLAS, or a copy by as many threads as our engine uses."""
    if case.what == "copy":
        name, run = "numpy_copy", _copier(case.size)
    else:
        name, run = "numpy_sgemm", prepare_product(case.size, case.dtype).forward
    timed = measure.interleave({name: run}, seconds_each=seconds)[name].fields()
    if case.what == "copy":
        return name, {**timed, "size": case.size, "gbytes_per_second": case.size / timed["seconds"] / 1e9}
    return name, {**timed, "size": case.size, "gflops": product_flops(case.size) / timed["seconds"] / 1e9}


def _copier(size: int) -> Callable[[], object]:
    """Copies so that `size` bytes are read and written, half and half; a thread a piece.

    NumPy copies on one thread, which takes no machine to its limit.
    """
    from concurrent.futures import ThreadPoolExecutor

    threads = measure.machine()["threads"]
    assert isinstance(threads, int)
    source = np.random.default_rng(0).standard_normal(size // 8, np.float32)
    target = np.empty_like(source)
    pieces = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    pool = ThreadPoolExecutor(threads)

    def copy() -> None:
        list(pool.map(lambda piece: np.copyto(*piece), pieces))

    return copy


def planning(case: PlanCase, own: Own, seconds: float) -> Row:
    """Seconds from a pattern that has computed nothing to a plan; a pattern keeps its plans."""

    def plan() -> tuple[nsa.Plan, float]:
        pattern = case.spec.build()
        start = time.perf_counter()
        made = nsa.plan(
            pattern,
            heads=case.heads,
            head_dim=case.head_dim,
            dtype=case.dtype,
            engine=own.engine,
            device=own.device,
        )
        return made, time.perf_counter() - start

    plan()  # compiles what builds patterns
    samples: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(samples) < FEWEST_PLANS or (time.perf_counter() < deadline and len(samples) < MOST_PLANS):
        made, taken = plan()
        samples.append(taken)
    held = {"engine": made.engine, "plan_bytes": made.nbytes}
    return {**held, **measure.summarize(samples).fields()}


def selecting(case: SelectCase, own: Own, seconds: float) -> Row:
    """Seconds to select by content, and of attention over what was selected, in turns."""
    entry, sizes = SELECTIONS[case.selection], case.sizes
    q, k = (array.astype(case.dtype) for array in sizes.arrays())
    pattern = entry.select(q, k, **sizes.arguments)
    plan = nsa.plan(
        pattern,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        dtype=case.dtype,
        engine=own.engine,
    )
    timed = measure.interleave(
        {"select": lambda: entry.select(q, k, **sizes.arguments), "attend": lambda: plan(q, k, k)},
        seconds_each=seconds,
    )
    return {
        "engine": plan.engine,
        "nnz": pattern.nnz,
        "density": 1.0 - pattern.sparsity,
        "attention_seconds": timed["attend"].fields()["seconds"],
        **timed["select"].fields(),
    }


def host_cost(case: HostCase, own: Own, seed: int, seconds: float) -> Row:
    """Seconds of a call that computes next to nothing."""
    plan, calls = calls_of(make_workload(case, seed, Host()), own)
    timed = measure.interleave({case.name: calls[case.what]}, seconds_each=seconds)[case.name].fields()
    return {"engine": plan.engine, **timed}


def calls_of(workload: Workload, own: Own) -> tuple[nsa.Plan, dict[str, Callable[[], Any]]]:
    """The plan of a workload, and what :class:`~benchmarks.kinds.HostCase` calls a call."""
    q, k, v, dout = workload.q, workload.k, workload.v, workload.dout
    pattern, scale = workload.pattern, workload.scale
    plan = own.plan(workload)
    out, lse = plan(q, k, v, return_lse=True)
    return plan, {
        "forward": lambda: plan(q, k, v),
        "forward_out": lambda: plan(q, k, v, out=out),
        "backward": lambda: plan.backward(dout, q, k, v, out, lse),
        "api": lambda: nsa.sparse_attention(q, k, v, pattern, scale=scale, engine=own.engine),
    }
