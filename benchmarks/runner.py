"""From a case to its rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from . import measure, probe
from .cases import AttentionCase, BuildCase, Case, ColdStartCase, Goal, MemoryCase, RateCase
from .gate import PEER_SLACK, Gate
from .peers import PEERS, Contender, Prepared, load_peer
from .peers.numpy_sgemm import prepare_product, product_flops
from .peers.own import Own, OwnDense, OwnPath
from .rows import Row
from .workload import Workload, make_workload

__all__ = ["Field", "expected_seconds", "run_case"]

#: Facts that are not those of a contender that computes something else.
_OF_PATTERN = {"nnz", "density"}

#: Peers whose compilation takes long, in seconds; for the progress bar only.
COMPILES = {"torch_flex": 20.0}


@dataclass(frozen=True)
class Field:
    """Who takes part in this run."""

    own: Own
    peers: dict[str, Contender]
    absent: dict[str, str]
    gpu: bool

    @classmethod
    def here(cls, engine: str = "auto", wanted: Sequence[str] | None = None) -> Field:
        """Look around: the engine, a GPU, and every peer that is wanted (None: all)."""
        peers: dict[str, Contender] = {}
        absent: dict[str, str] = {}
        for name in PEERS:
            if wanted is not None and name not in wanted:
                continue
            peer = load_peer(name)
            if reason := peer.why_absent():
                absent[name] = reason
            else:
                peers[name] = peer
        return cls(Own(engine), peers, absent, _cuda_device())

    def describe(self) -> str:
        """What was found, for the head of the output."""
        machine = measure.machine()
        lines = [
            f"machine: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads used",
            f"GPU: {'found; measured with pytest -m gpu, not by this script yet' if self.gpu else 'none'}",
            f"peers: {', '.join(self.peers) or 'none'}",
        ]
        lines += [f"skipped: {name}: {reason}" for name, reason in self.absent.items()]
        return "\n".join(lines)


def _cuda_device() -> bool:
    if importlib.util.find_spec("numba_cuda") is None:
        return False
    from numba import cuda

    return bool(cuda.is_available())


def expected_seconds(case: Case, field: Field, seconds: float) -> float:
    """A guess at how long a case takes, for the progress bar."""
    if isinstance(case, AttentionCase):
        peers = [name for name in case.peers if name in field.peers]
        contenders = 1 + case.dense + 2 * case.paths + len(peers)
        return contenders * (seconds + 1.0) + 2.0 + sum(COMPILES.get(name, 0.0) for name in peers)
    if isinstance(case, ColdStartCase):
        return case.repeats * (1.5 if case.warm else 5.0) + 5.0
    return {BuildCase: 5.0, MemoryCase: 8.0, RateCase: seconds}[type(case)]


def run_case(case: Case, field: Field, seed: int, seconds: float) -> list[Row]:
    """Measure one case: a row a contender."""
    if isinstance(case, AttentionCase):
        return _attention(case, field, seed, seconds)
    if isinstance(case, RateCase):
        return _rate(case, seconds)
    if isinstance(case, BuildCase):  # which needs no engine
        return [_fresh_process(case, "patterns", seed)]
    if why := field.own.why_absent():
        return [{**_head(case, field.own.name), "status": "skipped", "reason": why}]
    return [_fresh_process(case, field.own.name, seed)]


def _head(case: Case, contender: str) -> Row:
    """The fields that every row starts with."""
    kinds = {
        AttentionCase: "attention",
        BuildCase: "build",
        MemoryCase: "memory",
        ColdStartCase: "cold",
        RateCase: "rate",
    }
    head: Row = {"case": case.name, "kind": kinds[type(case)], "contender": contender}
    if not isinstance(case, RateCase):
        head["pattern"] = case.spec.label
    for name in ("direction", "heads", "kv_heads", "head_dim", "dtype"):
        if hasattr(case, name):
            head[name] = getattr(case, name)
    return head


def _goals(goals: Sequence[Goal], row: Row) -> list[Row]:
    """Every goal whose measure the row has."""
    found = []
    for goal in goals:
        value = row.get("speedup", {}).get(goal.peer) if goal.measure == "speedup" else row.get(goal.measure)
        if value is not None:
            found.append({"goal": goal.label, "value": value, "met": goal.met(value)})
    return found


def _rate(case: RateCase, seconds: float) -> list[Row]:
    prepared = prepare_product(case.size)
    timing = measure.interleave({"numpy_sgemm": prepared.forward}, seconds_each=seconds)["numpy_sgemm"]
    rate = product_flops(case.size) / timing.median / 1e9
    head = _head(case, "numpy_sgemm")
    return [{**head, "status": "measured", "size": case.size, "gflops": rate, **timing.fields()}]


def _fresh_process(case: BuildCase | MemoryCase | ColdStartCase, contender: str, seed: int) -> Row:
    head = _head(case, contender)
    request: dict[str, Any] = {"kind": head["kind"], "spec": asdict(case.spec), "seed": seed}
    run: Callable[[dict[str, Any]], dict[str, Any]] = probe.in_fresh_process
    if isinstance(case, BuildCase):
        request["seconds"] = 2.0
    elif isinstance(case, MemoryCase):
        request |= {name: getattr(case, name) for name in ("name", "direction", "heads", "head_dim", "dtype")}
    else:
        request |= {name: getattr(case, name) for name in ("warm", "repeats", "heads", "head_dim")}
        run = probe.cold_start  # which starts fresh processes itself
    try:
        result = run(request)
    except RuntimeError as error:
        return {**head, "status": "failed", "reason": str(error)}
    if samples := result.pop("samples", None):
        result |= measure.summarize(samples).fields()
    row = {**head, "status": "measured", **result}
    return {**row, "goals": _goals(case.goals, row)}


def _contenders(case: AttentionCase, field: Field) -> list[Contender]:
    """Ours first; then whoever the case names and the machine has."""
    found: list[Contender] = [field.own]
    if case.dense:
        found.append(OwnDense(field.own))
    if case.paths:
        found += [OwnPath("tiles"), OwnPath("rows")]
    return found + [field.peers[name] for name in case.peers if name in field.peers]


def _attention(case: AttentionCase, field: Field, seed: int, seconds: float) -> list[Row]:
    workload = make_workload(case, seed)
    gate = Gate(workload, seed)
    facts = {
        "n_q": workload.q.shape[1],
        "n_k": workload.k.shape[1],
        "value_dim": workload.value_dim,
        "nnz": workload.nnz,
        "density": workload.density,
    }
    refused: list[Row] = []
    ready: dict[str, tuple[Contender, Prepared]] = {}
    exact: dict[str, bool] = {}
    for contender in _contenders(case, field):
        head = {**_head(case, contender.name), **facts}
        if reason := contender.why_absent() or contender.why_not(workload):
            refused.append({**head, "status": "skipped", "reason": reason})
            continue
        try:
            prepared = contender.prepare(workload)
            beyond = wrong = gate.verdict(prepared)
            if beyond and contender.name in PEERS:
                wrong = gate.verdict(prepared, slack=PEER_SLACK)
        except Exception as error:  # one contender that breaks must not end a run of an hour
            refused.append({**head, "status": "failed", "reason": f"{type(error).__name__}: {error}"})
            continue
        if wrong:
            refused.append({**head, "status": "wrong", "reason": wrong})
        else:
            ready[contender.name] = (contender, prepared)
            exact[contender.name] = not beyond
    if not ready:
        return refused
    runners = {name: prepared.runner(workload) for name, (_, prepared) in ready.items()}
    timings = measure.interleave(runners, seconds_each=seconds)
    measured = []
    for name, (contender, prepared) in ready.items():
        flops = workload.flops if prepared.flops is None else prepared.flops
        row = {
            **_head(case, name),
            **{
                field: value for field, value in facts.items() if prepared.checked or field not in _OF_PATTERN
            },
            "status": "measured",
            "checked": prepared.checked,
            "within_budget": exact[name],
            **timings[name].fields(),
            "gflops": flops / timings[name].median / 1e9,
            "tokens_per_second": facts["n_q"] / timings[name].median,
            **prepared.setup,
            "packages": contender.version(),
        }
        if contender == field.own:
            row |= _comparisons(workload, row, timings, ready)
            row["goals"] = _goals(case.goals, row)
        measured.append(row)
    return measured + refused


def _comparisons(
    workload: Workload,
    own: Row,
    timings: dict[str, measure.Timing],
    ready: dict[str, tuple[Contender, Prepared]],
) -> Row:
    """Our row beside the others of the same turns."""
    found: Row = {"speedup": {}}
    for name, (contender, prepared) in ready.items():
        ratio = timings[name].median / own["seconds"]
        if isinstance(contender, OwnDense):
            found["speedup_dense"] = ratio
            found["efficiency"] = ratio * workload.density
        elif name == "numpy_sgemm":
            assert prepared.flops is not None
            found["share_of_sgemm"] = own["gflops"] / (prepared.flops / timings[name].median / 1e9)
        elif prepared.checked and name != own["contender"]:
            found["speedup"][name] = ratio
    return found
