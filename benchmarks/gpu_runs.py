"""What is measured on a GPU besides attention: the machine's own rates, host cost, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numba_sparse_attn as nsa
from numba_sparse_attn.dynamic.catalogue import SELECTIONS
from numba_sparse_attn.patterns.catalogue import CATALOGUE

from .gpu import Gpu
from .host_runs import calls_of
from .kinds import AttentionCase, GatherCase, HostCase, MemoryCase, PatternSpec, RateCase, SelectCase
from .peers import GPU_PEERS, Contender
from .peers.numpy_sgemm import product_flops
from .peers.own import Own
from .rows import Row
from .workload import NotHere, make_workload

__all__ = ["gather", "host_cost", "memory", "rate", "selecting"]


def _timed(name: str, run: Callable[[], object], gpu: Gpu, seconds: float) -> Row:
    return gpu.interleave({name: run}, seconds_each=seconds)[name].fields()


def rate(case: RateCase, gpu: Gpu, seed: int, seconds: float) -> tuple[str, Row]:
    """A matrix product or a copy, on random numbers: zeros run faster than data does."""
    if case.what == "copy":
        # Half of the bytes are read, half are written, as numbers of four bytes.
        (source,) = gpu.random(seed, "float32", (case.size // 8,))
        name = f"{gpu.arrays.name}_copy"
        timed = _timed(name, gpu.arrays.copier(source), gpu, seconds)
        return name, {**timed, "size": case.size, "gbytes_per_second": case.size / timed["seconds"] / 1e9}
    left, right = gpu.random(seed, case.dtype, (case.size, case.size), (case.size, case.size))
    name = f"{gpu.arrays.name}_product"
    multiply = gpu.arrays.multiplier(left, right)
    if multiply is None:
        raise NotHere(f"{gpu.arrays.name} has no matrix product")
    timed = _timed(name, multiply, gpu, seconds)
    return name, {**timed, "size": case.size, "gflops": product_flops(case.size) / timed["seconds"] / 1e9}


def selecting(
    case: SelectCase, own: Own, peers: Sequence[Contender], gpu: Gpu, seed: int, seconds: float
) -> Row:
    """Seconds of a call that selects, plans and attends, from arrays on the GPU to an array on the GPU.

    What selecting takes of that is timed apart, and so is attention over a plan that is there. Both of the
    former wait for the GPU, as whoever selects does; peers do not, and are timed as everywhere.
    """
    sizes, select = case.sizes, SELECTIONS[case.selection].select
    shown = AttentionCase(
        case.name,
        PatternSpec("full", {"n": case.length}),
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        dtype=case.dtype,
        device="gpu",
    )
    workload = make_workload(shown, seed, gpu)
    q, k, v = workload.q, workload.k, workload.v
    pattern = select(q, k, **sizes.arguments)
    plan = nsa.plan(
        pattern,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        dtype=case.dtype,
        engine=own.engine,
        device=gpu.device,
    )
    runners: dict[str, Callable[[], object]] = {
        "whole": lambda: nsa.sparse_attention(q, k, v, select(q, k, **sizes.arguments), engine=own.engine),
        "select": lambda: select(q, k, **sizes.arguments),
        "attend": lambda: plan(q, k, v),
    }
    for peer in peers:
        if not (peer.why_absent() or peer.why_not(workload)):
            runners[peer.name] = peer.prepare(workload).runner(workload)
    waits = dict.fromkeys(("whole", "select"), gpu.synchronize)
    timed = gpu.interleave(runners, seconds_each=seconds, waits=waits)
    whole = timed["whole"].fields()
    return {
        "engine": plan.engine,
        "nnz": pattern.nnz,
        "density": 1.0 - pattern.sparsity,
        "clock": "host",
        "select_seconds": timed["select"].median,
        "attention_seconds": timed["attend"].median,
        "peer_seconds": {name: timed[name].median for name in runners if name in GPU_PEERS},
        "speedup": {
            name: timed[name].median / timed["whole"].median for name in runners if name in GPU_PEERS
        },
        **whole,
    }


def gather(case: GatherCase, gpu: Gpu, seed: int, seconds: float) -> Row:
    """Bytes a second of the plain gather."""
    from .peers.gpu_gather import prepare_gather

    workload = make_workload(case, seed, gpu)
    timed = _timed("gather", prepare_gather(workload).forward, gpu, seconds)
    return {
        **timed,
        "nnz": workload.nnz,
        "row_bytes": workload.head_dim * workload.dtype.itemsize,
        "gbytes_per_second": workload.gathered_bytes / timed["seconds"] / 1e9,
    }


def host_cost(case: HostCase, own: Own, gpu: Gpu, seed: int) -> Row:
    """Microseconds of Python and driver to queue one call."""
    workload = make_workload(case, seed, gpu)
    if case.what == "launch":
        from .peers.gpu_gather import prepare_gather

        return gpu.host_seconds(prepare_gather(workload).forward).fields()
    plan, calls = calls_of(workload, own)
    return {"engine": plan.engine, **gpu.host_seconds(calls[case.what]).fields()}


def memory(case: MemoryCase, own: Own, gpu: Gpu, seed: int) -> Row:
    """Peak memory of planning and one call beyond the inputs; for the backward pass, of that call."""

    def run(spec: PatternSpec) -> Row:
        workload = make_workload(replace(case, spec=spec), seed, gpu)
        inputs = (workload.q, workload.k, workload.v)

        def planned() -> tuple[nsa.Plan, tuple[Any, ...]]:
            plan = own.plan(workload)
            return plan, plan(*inputs, return_lse=True)

        (plan, results), usage = gpu.usage(planned)
        if case.direction == "backward":
            out, lse = results

            def backward() -> tuple[Any, ...]:
                return plan.backward(workload.dout, *inputs, out, lse)

            results, usage = gpu.usage(backward)
        held = sum(array.nbytes for array in results) + plan.nbytes
        square = case.heads * workload.pattern.shape[0] * workload.pattern.shape[1]
        return {
            "engine": plan.engine,
            "peak_extra_bytes": usage.peak,
            "memory_counted_by": usage.counted,
            "results_bytes": held,
            "peak_over_results": usage.peak / held,
            "square_bytes": square * workload.dtype.itemsize,
            "nnz": workload.nnz,
        }

    # Once at toy size: kernels are compiled and loaded, which is no memory of a call.
    run(PatternSpec(case.spec.function, CATALOGUE[case.spec.function].examples[0]))
    return run(case.spec)
