"""One measurement in a fresh process: peak memory, cold start, pattern building.

Run by :mod:`benchmarks.run` as ``python benchmarks/probe.py '{"kind": ...}'``; prints one JSON line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

#: What a newcomer writes. The parent's clock runs from before the process starts to the line it prints.
COLD_SCRIPT = """
import time
start = time.perf_counter()
import numpy as np
import numba_sparse_attn as nsa
imported = time.perf_counter()
q, k, v = np.random.default_rng(0).standard_normal((3, {heads}, {n}, {head_dim}), np.float32)
q, k, v = (array.astype(np.{dtype}, copy=False) for array in (q, k, v))
pattern = nsa.patterns.{function}(**{arguments!r})
made = time.perf_counter()
out = nsa.sparse_attention(q, k, v, pattern, engine={engine!r})
print(imported - start, time.perf_counter() - made, float(out[0, 0, 0]), flush=True)
"""


def in_fresh_process(request: dict[str, Any]) -> dict[str, Any]:
    """Run one of the measurements below in a process of its own."""
    run = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), json.dumps(request)], capture_output=True, text=True
    )
    if run.returncode:
        raise RuntimeError(run.stderr.strip().splitlines()[-1] if run.stderr.strip() else "the process died")
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def cold_start(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the start of a process to its first result, with an empty or a filled kernel cache."""
    spec = request["spec"]
    script = COLD_SCRIPT.format(
        heads=request["heads"],
        head_dim=request["head_dim"],
        dtype=request["dtype"],
        engine=request["engine"],
        n=spec["arguments"]["n"],
        function=spec["function"],
        arguments=spec["arguments"],
    )
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(request["repeats"] + request["warm"]):
            cache = folder if request["warm"] else str(Path(folder, str(repeat)))
            paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
            environment = {**os.environ, "NSA_CACHE_DIR": cache, "PYTHONPATH": paths}
            start = time.perf_counter()
            with subprocess.Popen(
                [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                line = process.stdout.readline()
                seconds = time.perf_counter() - start
            if process.returncode:
                raise RuntimeError("the fresh process failed")
            imports, first_call, _ = map(float, line.split())
            if repeat or not request["warm"]:  # the first start of a warm case fills the cache
                samples.append((seconds, imports, first_call))
    samples.sort()
    _, imports, first_call = samples[len(samples) // 2]
    return {
        "samples": [sample[0] for sample in samples],
        "import_seconds": imports,
        "first_call_seconds": first_call,
    }


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Pattern to tiles: memory of the first build of a warm process, then the time of repeated builds."""
    from benchmarks import measure
    from benchmarks.kinds import PatternSpec
    from numba_sparse_attn.patterns.catalogue import CATALOGUE

    spec = PatternSpec(**request["spec"])
    stored = spec.function == "arbitrary_csr"

    def tiles_of(made: Any) -> list[Any]:
        members = made.members if hasattr(made, "members") else (made,)
        return [member.tiles() for member in members]

    if stored:
        tiles_of(PatternSpec(spec.function, {"n": 256, "per_row": 4, "seed": 0}).build())
    else:
        tiles_of(CATALOGUE[spec.function].build(**CATALOGUE[spec.function].examples[0]))
    pattern = spec.build() if stored else None
    measure.reset_peak_memory()
    before = measure.current_memory()
    tiles = tiles_of(pattern or spec.build())
    peak = measure.peak_memory()
    result = {
        "tiles": sum(part.count for part in tiles),
        "full_tiles": sum(part.full_count for part in tiles),
        "unique_masks": sum(len(part.pool) for part in tiles),
        "tiles_bytes": sum(part.nbytes for part in tiles),
        "nnz": sum(part.nnz for part in tiles),
        "peak_bytes": peak,
        "peak_extra_bytes": None if before is None or peak is None else peak - before,
    }
    samples: list[float] = []
    deadline = time.perf_counter() + request["seconds"]
    while len(samples) < 5 or (time.perf_counter() < deadline and len(samples) < 50):
        # CSR that a user brings is there already; a named pattern is made from its arguments each time.
        fresh = spec.build() if stored else None
        start = time.perf_counter()
        tiles_of(fresh or spec.build())
        samples.append(time.perf_counter() - start)
    return {**result, "samples": samples}


def memory(request: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of planning and one call beyond the inputs; for the backward pass, of that call."""
    import numba_sparse_attn as nsa
    from benchmarks import measure
    from benchmarks.kinds import MemoryCase, PatternSpec
    from benchmarks.workload import Host, Workload, make_workload
    from numba_sparse_attn.patterns.catalogue import CATALOGUE

    fields = {key: value for key, value in request.items() if key not in {"kind", "seed"}}
    case = MemoryCase(**{**fields, "spec": PatternSpec(**request["spec"])})
    tiny = PatternSpec(case.spec.function, CATALOGUE[case.spec.function].examples[0])

    def plan_for(work: Workload) -> nsa.Plan:
        return nsa.plan(
            work.pattern, heads=case.heads, head_dim=case.head_dim, dtype=case.dtype, engine=case.engine
        )

    warm = make_workload(replace(case, spec=tiny), 0, Host())
    plan = plan_for(warm)
    out, lse = plan(warm.q, warm.k, warm.v, return_lse=True)
    if case.direction == "backward":
        plan.backward(warm.dout, warm.q, warm.k, warm.v, out, lse)

    work = make_workload(case, request["seed"], Host())
    inputs = (work.q, work.k, work.v)
    if case.direction == "backward":
        plan = plan_for(work)
        out, lse = plan(*inputs, return_lse=True)
    measure.reset_peak_memory()
    before = measure.current_memory()
    if case.direction == "forward":
        plan = plan_for(work)
        results = plan(*inputs, return_lse=True)
    else:
        results = plan.backward(work.dout, *inputs, out, lse)
    peak = measure.peak_memory()
    held = sum(array.nbytes for array in results) + plan.nbytes
    extra = None if before is None or peak is None else peak - before
    return {
        "peak_bytes": peak,
        "peak_extra_bytes": extra,
        "results_bytes": held,
        "peak_over_results": None if extra is None else extra / held,
        "square_bytes": case.heads * work.pattern.shape[0] * work.pattern.shape[1] * work.q.itemsize,
        "nnz": work.nnz,
    }


KINDS = {"build": build, "memory": memory, "cold": cold_start}

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    asked = json.loads(sys.argv[1])
    print(json.dumps(KINDS[asked["kind"]](asked)))
