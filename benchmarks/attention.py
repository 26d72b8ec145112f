"""One attention case: who takes part, the check against the oracle, the turns, the rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from numba_sparse_attn import EngineError

from . import measure
from .case_rows import goal_rows, head_of
from .gate import PEER_SLACK, Gate
from .kinds import AttentionCase
from .peers import PEERS, Contender, Prepared
from .peers.own import DENSE, OwnBeside, OwnChanged
from .rows import OWN, Row
from .workload import NotHere, Place, Workload, make_workload

__all__ = ["measure_attention", "refusal"]

#: Facts that are not those of a contender that computes something else.
_OF_PATTERN = {"nnz", "density", "normaliser"}


def measure_attention(
    case: AttentionCase, contenders: Sequence[Contender], place: Place, seed: int, seconds: float
) -> list[Row]:
    """A row a contender, the first of which is ours."""
    own = contenders[0]
    try:
        workload = make_workload(case, seed, place)
    except Exception as error:  # no such element type, no room
        return [{**head_of(case, own.name), **place.facts, **refusal(error)}]
    gate = Gate(workload, seed)
    facts = {
        "n_q": workload.q.shape[1],
        "n_k": workload.k.shape[1],
        "value_dim": workload.value_dim,
        "nnz": workload.nnz,
        "density": workload.density,
        **({"normaliser": case.normaliser} if case.normaliser else {}),
    }
    refused: list[Row] = []
    ready: dict[str, tuple[Contender, Prepared]] = {}
    found: dict[str, Row] = {}
    for contender in contenders:
        head = {**head_of(case, contender.name), **place.facts, **facts}
        if reason := contender.why_absent() or contender.why_not(workload):
            refused.append({**head, "status": "skipped", "reason": reason})
            continue
        try:
            prepared, usage = place.usage(partial(contender.prepare, workload))
            beyond = wrong = gate.verdict(prepared)
            if beyond and contender.name in PEERS:
                wrong = gate.verdict(prepared, slack=PEER_SLACK)
            memory = {} if wrong else _memory(workload, prepared, usage)
        except Exception as error:  # one contender that breaks must not end a run of an hour
            refused.append({**head, **refusal(error)})
            continue
        if wrong:
            refused.append({**head, "status": "wrong", "reason": wrong})
        else:
            ready[contender.name] = (contender, prepared)
            found[contender.name] = {"within_budget": not beyond, **memory}
    if not ready:
        return refused
    runners = {name: prepared.runner(workload) for name, (_, prepared) in ready.items()}
    waits = {name: prepared.wait for name, (_, prepared) in ready.items() if prepared.wait is not None}
    timings = place.interleave(runners, seconds_each=seconds, waits=waits)
    measured = []
    for name, (contender, prepared) in ready.items():
        row = {
            **head_of(case, name),
            **place.facts,
            **{key: value for key, value in facts.items() if prepared.checked or key not in _OF_PATTERN},
            "status": "measured",
            "checked": prepared.checked,
            **({"computes": prepared.computes} if prepared.computes else {}),
            **({"engine": prepared.engine} if prepared.engine else {}),
            **found[name],
            **timings[name].fields(),
            **({"clock": "host"} if place.gpu and name in waits else {}),
            **_rates(workload, prepared, timings[name].median),
            **(place.energy(runners[name], waits.get(name)) if case.energy else {}),
            **prepared.setup,
            "packages": contender.version(),
        }
        if contender is own:
            row |= _comparisons(workload, row, timings, ready)
            row["goals"] = goal_rows(case.goals, row)
        measured.append(row)
    return measured + refused


def refusal(error: Exception) -> Row:
    """Status and reason: a planner that declines, or a library without an element type, has not failed."""
    if isinstance(error, EngineError | NotHere):
        return {"status": "skipped", "reason": str(error)}
    first_line = str(error).strip().partition("\n")[0]
    return {"status": "failed", "reason": f"{type(error).__name__}: {first_line}"}


def _memory(workload: Workload, prepared: Prepared, setup: measure.Usage | None) -> Row:
    """Memory over the inputs: what being ready holds, and the most during one call; nothing on the host."""
    if setup is None or not prepared.memory_counted:
        return {}
    _, call = workload.place.usage(prepared.runner(workload))
    assert call is not None
    return {
        "setup_peak_bytes": setup.peak,
        "held_bytes": setup.held,
        "peak_bytes": setup.held + call.peak,
        "memory_counted_by": call.counted,
    }


def _rates(workload: Workload, prepared: Prepared, seconds: float) -> Row:
    """Useful work over time; bytes a second only where pairs are gathered, which is on a GPU forward."""
    flops = workload.flops if prepared.flops is None else prepared.flops
    rates: Row = {"gflops": flops / seconds / 1e9, "tokens_per_second": workload.q.shape[1] / seconds}
    if prepared.checked:
        rates["gpairs_per_second"] = workload.nnz / seconds / 1e9
        if workload.place.gpu and workload.direction == "forward":
            rates["gathered_gbytes_per_second"] = workload.gathered_bytes / seconds / 1e9
    return rates


def _comparisons(
    workload: Workload,
    own: Row,
    timings: dict[str, measure.Timing],
    ready: dict[str, tuple[Contender, Prepared]],
) -> Row:
    """Our row beside the others of the same turns."""
    speedup: dict[str, float] = {}
    all_pairs: dict[str, float] = {}
    slowdown: dict[str, float] = {}
    changed: dict[str, float] = {}
    alternatives: dict[str, float] = {}
    found: dict[str, Any] = {"speedup": speedup}
    for name, (contender, prepared) in ready.items():
        ratio = timings[name].median / own["seconds"]
        if isinstance(contender, OwnBeside):
            if contender.label == DENSE:
                found["speedup_dense"] = ratio
                found["efficiency"] = ratio * workload.density
            else:
                slowdown[contender.label] = 1 / ratio
        elif isinstance(contender, OwnChanged):
            changed[contender.change] = ratio
        elif name == "numpy_sgemm":
            assert prepared.flops is not None
            found["share_of_sgemm"] = own["gflops"] / (prepared.flops / timings[name].median / 1e9)
        elif name == "gather_only":
            found["share_of_gather"] = ratio
        elif prepared.computes:
            all_pairs[name] = ratio
        elif name.startswith(OWN) and name != own["contender"]:
            alternatives[name] = ratio
        elif prepared.checked and name != own["contender"]:
            speedup[name] = ratio
    if slowdown:
        found["slowdown"] = slowdown
    if changed:
        found["changed"] = changed
    if alternatives:
        found["alternatives"] = alternatives
        found["over_best"] = 1 / min(alternatives.values())
    if all_pairs:
        found["speedup_all_pairs"] = all_pairs
    return found
