"""From a case to its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import gpu_runs, host_runs, measure, probe
from .attention import measure_attention, refusal
from .case_rows import goal_rows, head_of
from .gpu import ENERGY_SECONDS, Gpu, find_gpu, why_no_gpu
from .kinds import (
    AttentionCase,
    BuildCase,
    Case,
    ColdStartCase,
    GatherCase,
    HostCase,
    MemoryCase,
    PlanCase,
    RateCase,
    SelectCase,
    device_of,
)
from .peers import GPU_PEERS, PEERS, Contender, load_peer
from .peers.own import Own, OwnBeside, OwnChanged, OwnPath, own_dense
from .rows import Row
from .workload import Host

__all__ = ["Field", "expected_seconds", "run_case"]

#: Seconds for each contender unless the command line says otherwise: a GPU is quiet, and its time is dear.
SECONDS = {"cpu": 2.0, "gpu": 0.25}
#: What the planner chooses from for arrays on a GPU.
GPU_ENGINES = ("cuda-tile", "cuda-warp")
#: Peers whose compilation takes long, in seconds; for the progress bar only.
COMPILES = {"torch_flex": 20.0, "flex_cuda": 6.0, "torch_unfused": 2.0, "jax_cudnn": 3.0, "jax_xla": 1.0}


@dataclass(frozen=True)
class Field:
    """Who takes part in this run.

    Attributes
    ----------
    own : Own
        Our engine on the host.
    peers : dict
        Those that are here.
    absent : dict
        Those that are not, and why.
    gpu : Gpu or None
    no_gpu : str
        Why there is none.
    """

    own: Own
    peers: dict[str, Contender]
    absent: dict[str, str]
    gpu: Gpu | None = None
    no_gpu: str = ""

    @classmethod
    def here(
        cls, engine: str = "auto", wanted: Sequence[str] | None = None, *, look_for_gpu: bool = True
    ) -> Field:
        """Look around: the engine, a GPU, and every peer that is wanted (None: all)."""
        gpu = find_gpu() if look_for_gpu else None
        peers: dict[str, Contender] = {}
        absent: dict[str, str] = {}
        for name in PEERS:
            if (wanted is not None and name not in wanted) or (gpu is None and name in GPU_PEERS):
                continue
            peer = load_peer(name)
            if reason := peer.why_absent():
                absent[name] = reason
            else:
                peers[name] = peer
        no_gpu = "" if gpu else why_no_gpu() if look_for_gpu else "nobody asked for it"
        return cls(Own(engine), peers, absent, gpu, no_gpu)

    def own_for(self, case: Case) -> Own:
        """Our engine for a case: the command line's, else the case's."""
        if device_of(case) != "gpu":
            return self.own
        engine = self.own.engine if self.own.engine != "auto" else getattr(case, "engine", "auto")
        device = "cuda" if self.gpu is None else self.gpu.device
        return Own(engine, device, portable=getattr(case, "portable", False))

    def describe(self) -> str:
        """What was found, for the head of the output."""
        machine = measure.machine()
        lines = [f"machine: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads used"]
        if self.gpu is None:
            lines.append(f"GPU: none ({self.no_gpu})")
        else:
            facts = self.gpu.facts["device"]
            lines.append(
                f"GPU: {facts['name']}, driver {facts['driver']}, clocks {facts['clocks']}, "
                f"arrays by {self.gpu.facts['arrays']}"
            )
        lines.append(f"peers: {', '.join(self.peers) or 'none'}")
        lines += [f"skipped: {name}: {reason}" for name, reason in self.absent.items()]
        return "\n".join(lines)


def expected_seconds(case: Case, field: Field, seconds: float | None) -> float:
    """A guess at how long a case takes, for the progress bar."""
    on_gpu = device_of(case) == "gpu"
    each = SECONDS["gpu" if on_gpu else "cpu"] if seconds is None else seconds
    if on_gpu and field.gpu is None:
        return 0.01
    if isinstance(case, AttentionCase):
        peers = [name for name in case.peers if name in field.peers]
        contenders = 1 + case.dense + len(case.beside) + len(case.changes) + len(peers)
        contenders += 2 * (case.paths + case.orders)
        each += ENERGY_SECONDS * case.energy
        check = 0.3 if on_gpu else 1.0
        return contenders * (each + check) + 2.0 + sum(COMPILES.get(name, 0.0) for name in peers)
    if isinstance(case, ColdStartCase):
        return case.repeats * (1.5 if case.warm else 5.0) + 5.0
    if on_gpu or isinstance(case, PlanCase | RateCase | HostCase | SelectCase):
        return each + 2.0
    return {BuildCase: 5.0, MemoryCase: 8.0}[type(case)]


def run_case(case: Case, field: Field, seed: int, seconds: float | None = None) -> list[Row]:
    """Measure one case: a row a contender. `seconds` is for each contender; None is the device's usual."""
    if device_of(case) == "gpu":
        if field.gpu is None:
            reason = f"needs a GPU: {field.no_gpu}"
            return [{**head_of(case, field.own_for(case).name), "status": "skipped", "reason": reason}]
        return _on_gpu(case, field, field.gpu, seed, SECONDS["gpu"] if seconds is None else seconds)
    seconds = SECONDS["cpu"] if seconds is None else seconds
    if isinstance(case, AttentionCase):
        return measure_attention(case, _contenders(case, field), Host(), seed, seconds)
    own = field.own
    if isinstance(case, BuildCase):  # which needs no engine
        return [_fresh_process(case, own, "patterns", seed)]
    if not isinstance(case, RateCase) and (why := own.why_absent()):
        return [{**head_of(case, own.name), "status": "skipped", "reason": why}]
    if isinstance(case, MemoryCase | ColdStartCase):
        return [_fresh_process(case, own, own.name, seed)]
    try:
        if isinstance(case, RateCase):
            name, measured = host_runs.rate(case, seconds)
        elif isinstance(case, PlanCase):
            name, measured = own.name, host_runs.planning(case, own, seconds)
        elif isinstance(case, SelectCase):
            name, measured = own.name, host_runs.selecting(case, own, seconds)
        else:
            assert isinstance(case, HostCase)
            name, measured = own.name, host_runs.host_cost(case, own, seed, seconds)
    except Exception as error:  # a case that breaks must not end a run of an hour
        return [{**head_of(case, own.name), **refusal(error)}]
    return [_measured(case, name, measured)]


def _measured(case: Case, contender: str, found: Row) -> Row:
    """The row of a case that is not attention, with its goals."""
    row = {**head_of(case, contender), "status": "measured", **found}
    return {**row, "goals": goal_rows(getattr(case, "goals", ()), row)}


def _contenders(case: AttentionCase, field: Field) -> list[Contender]:
    """Ours first; then whoever the case names and the machine has."""
    own = field.own_for(case)
    found: list[Contender] = [own]
    if case.dense:
        found.append(own_dense(own, case.spec))
    found += [OwnBeside(own, label, spec) for label, spec in case.beside]
    if case.orders:
        found += [replace(own, order=order) for order in ("natural", "declared")]
    found += [OwnChanged(own, change) for change in case.changes]
    if case.paths and device_of(case) == "gpu":
        found += [replace(own, engine=name) for name in GPU_ENGINES if name != own.name]
    elif case.paths:
        found += [OwnPath("tiles"), OwnPath("rows")]
    return found + [field.peers[name] for name in case.peers if name in field.peers]


def _on_gpu(case: Case, field: Field, gpu: Gpu, seed: int, seconds: float) -> list[Row]:
    """Everything that is measured on a GPU, in this process."""
    own = field.own_for(case)
    if isinstance(case, AttentionCase):
        return measure_attention(case, _contenders(case, field), gpu, seed, seconds)
    if isinstance(case, ColdStartCase):
        if why := own.why_absent():
            return [{**head_of(case, own.name), **gpu.facts, "status": "skipped", "reason": why}]
        return [{**gpu.facts, **_fresh_process(case, own, own.name, seed)}]
    try:
        if isinstance(case, GatherCase):
            name, measured = "gather_only", gpu_runs.gather(case, gpu, seed, seconds)
        elif isinstance(case, RateCase):
            name, measured = gpu_runs.rate(case, gpu, seed, seconds)
        elif isinstance(case, HostCase):
            name = "launch" if case.what == "launch" else own.name
            measured = gpu_runs.host_cost(case, own, gpu, seed)
        elif isinstance(case, PlanCase):
            name, measured = own.name, host_runs.planning(case, own, seconds)
        elif isinstance(case, SelectCase):
            peers = [field.peers[name] for name in case.peers if name in field.peers]
            name, measured = own.name, gpu_runs.selecting(case, own, peers, gpu, seed, seconds)
        else:
            assert isinstance(case, MemoryCase)
            name, measured = own.name, gpu_runs.memory(case, own, gpu, seed)
    except Exception as error:  # a case that breaks must not end a run of an hour
        return [{**head_of(case, own.name), **gpu.facts, **refusal(error)}]
    return [_measured(case, name, {**gpu.facts, **measured})]


def _fresh_process(case: BuildCase | MemoryCase | ColdStartCase, own: Own, contender: str, seed: int) -> Row:
    head = head_of(case, contender)
    request: dict[str, Any] = {"kind": head["kind"], "spec": asdict(case.spec), "seed": seed}
    run: Callable[[dict[str, Any]], dict[str, Any]] = probe.in_fresh_process
    if isinstance(case, BuildCase):
        request["seconds"] = 2.0
    else:
        request |= {name: getattr(case, name) for name in ("heads", "head_dim", "dtype")}
        request["engine"] = own.engine
    if isinstance(case, MemoryCase):
        request |= {name: getattr(case, name) for name in ("name", "direction")}
    elif isinstance(case, ColdStartCase):
        request |= {name: getattr(case, name) for name in ("warm", "repeats")}
        run = probe.cold_start  # which starts fresh processes itself
    try:
        result = run(request)
    except RuntimeError as error:
        return {**head, "status": "failed", "reason": str(error)}
    if samples := result.pop("samples", None):
        result |= measure.summarize(samples).fields()
    return _measured(case, contender, result)
