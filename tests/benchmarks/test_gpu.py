"""Measuring on a GPU, on one that is imagined: turns, memory, comparisons, refusals."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import attention, brief_reports, cases, energy, gpu, kinds, rows, run, runner, tables
from benchmarks.gate import Gate
from benchmarks.peers import Prepared
from benchmarks.peers.numpy_dense import Peer as NumpyDense
from benchmarks.peers.own import Own, OwnBeside
from benchmarks.workload import make_workload

from .fake_gpu import FakeArrays, FakeClock, FakeGpu

WINDOW = kinds.PatternSpec("sliding_window", {"n": 600, "window": 9})
CASE = kinds.AttentionCase("gpu/case", WINDOW, head_dim=16, device="gpu")


def field_with(*peers: Any, engine: str = "auto") -> runner.Field:
    return runner.Field(Own(engine), {peer.name: peer for peer in peers}, {}, FakeGpu())


@pytest.fixture
def imagined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "find_gpu", FakeGpu)
    monkeypatch.setattr(runner, "GPU_PEERS", {})
    monkeypatch.setattr(runner, "PEERS", {})


# The whole -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("imagined")
def test_the_whole_suite_at_toy_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runnable = [case for case in cases.GPU_TINY if not needs_a_driver(case)]
    monkeypatch.setattr(cases, "GPU_TINY", runnable)
    monkeypatch.setattr(gpu, "ENERGY_SECONDS", 0.05)
    path = tmp_path / "rows.jsonl"
    options = ["--tiny", "--device", "gpu", "--json", str(path), "--seconds", "0.001", "--no-figures"]
    assert run.main(options) == 0
    found = list(rows.read(path))
    printed = capsys.readouterr().out
    assert "Imagined GPU, driver 1.2.3, clocks not locked, arrays by numpy" in printed
    assert {row["case"] for row in found} == {case.name for case in runnable}
    assert {row["kind"] for row in found} == {"rate", "host", "attention", "memory", "plan", "select"}
    for row in found:
        assert row["status"] == "measured" and row["device"]["name"] == "Imagined GPU"
        assert row["case"] in printed and rows.on_gpu(row)
        assert "Imagined" in rows.machine_title(row)
    for row in found:
        if row["kind"] == "attention":
            assert row["engine"] == "cpu" and row["host_seconds"] > 0
            assert row["setup_peak_bytes"] == 3040 and row["peak_bytes"] == 3040
            assert row["within_budget"] and row["memory_counted_by"].endswith("at their peak")
    (selected,) = (row for row in found if row["kind"] == "select")
    assert selected["clock"] == "host" and 0.0 < selected["density"] < 1.0
    assert 0.0 < selected["select_seconds"] and 0.0 < selected["attention_seconds"]
    (energy,) = (row for row in found if row["case"] == "tiny/gpu_energy")
    assert energy["watts"] == pytest.approx(300, rel=0.1)
    assert energy["joules"] > 0 and energy["energy_seconds"] >= 0.05
    assert f"{energy['joules']:.3g} J at" in printed
    own = next(row for row in found if row["case"] == "tiny/gpu_training_float16" and "slowdown" in row)
    assert own["slowdown"].keys() == {"causal"}
    assert own["gflops"] == pytest.approx(2 * own["nnz"] * 7 * 64 / own["seconds"] / 1e9)
    assert own["gpairs_per_second"] == pytest.approx(own["nnz"] / own["seconds"] / 1e9)


@pytest.mark.gpu
def test_the_whole_suite_on_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    options = ["--tiny", "--device", "gpu", "--json", str(path), "--seconds", "0.01", "--no-figures"]
    assert run.main([*options, "--peer", "gather_only"]) == 0
    assert {row["status"] for row in rows.read(path)} == {"measured"}


def needs_a_driver(case: kinds.Case) -> bool:
    return isinstance(case, kinds.GatherCase) or getattr(case, "what", "") == "launch"


def test_without_a_gpu_its_cases_are_left_out_or_skipped_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "find_gpu", lambda: None)
    monkeypatch.setattr(runner, "why_no_gpu", lambda: "nobody put one in")
    assert run.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert "target/window_forward" in listed and "\ngpu/" not in listed
    path = tmp_path / "rows.jsonl"
    assert run.main(["--cases", "gpu/copy", "--json", str(path), "--no-figures"]) == 0
    (row,) = rows.read(path)
    assert row["status"] == "skipped" and row["reason"] == "needs a GPU: nobody put one in"


@pytest.mark.usefixtures("imagined")
def test_with_a_gpu_the_tour_is_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--quick", "--list"]) == 0
    names = capsys.readouterr().out
    assert "gpu-quick/causal" in names and "\nquick/causal" not in names
    assert run.main(["--quick", "--list", "--device", "cpu"]) == 0
    names = capsys.readouterr().out
    assert "gpu-quick/causal" not in names and "\nquick/causal" in names


def test_a_measurement_that_breaks_is_a_row() -> None:
    class Broken(FakeArrays):
        def multiplier(self, left: Any, right: Any) -> None:
            return None

        def copier(self, source: Any) -> Callable[[], object]:
            raise MemoryError("no room\nat all")

    broken = runner.Field(Own(), {}, {}, gpu.Gpu(Broken(), FakeClock()))
    (row,) = runner.run_case(kinds.RateCase("gpu/p", 8, device="gpu"), broken, 0, 0.001)
    assert row["status"] == "skipped" and row["reason"] == "numpy has no matrix product"
    (row,) = runner.run_case(kinds.RateCase("gpu/c", 64, "copy", device="gpu"), broken, 0, 0.001)
    assert row["status"] == "failed" and row["reason"] == "MemoryError: no room"


def test_an_engine_that_declines_is_skipped_with_its_reason() -> None:
    found = runner.run_case(replace(CASE, dense=False, engine="cuda-nonsense"), field_with(), 0, 0.001)
    assert [row["status"] for row in found] == ["skipped"] and "cuda-nonsense" in found[0]["reason"]


def test_the_command_line_s_engine_comes_before_the_case_s() -> None:
    assert field_with().own_for(replace(CASE, engine="cuda-warp")).engine == "cuda-warp"
    assert field_with(engine="reference").own_for(replace(CASE, engine="cuda-warp")).engine == "reference"


# Time and memory -----------------------------------------------------------------------------------------


class Scripted(FakeClock):
    """A clock by which every call takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.calls = 0
        self.seconds = seconds

    def start(self) -> None:
        self.log.append("start")
        self.calls = 0

    def stop(self) -> float:
        self.log.append("stop")
        return self.calls * self.seconds


@pytest.mark.parametrize(("seconds", "calls"), [(1e-2, 1), (1e-4, 10), (1e-9, gpu.MOST_CALLS)])
def test_a_batch_lasts_long_enough_for_its_events(
    seconds: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "WARM", 0.0)
    clock = Scripted(seconds)

    def call() -> None:
        clock.calls += 1

    timing = gpu.Gpu(FakeArrays(), clock).interleave({"a": call}, seconds_each=0.0)["a"]
    assert clock.calls == calls
    assert timing.median == pytest.approx(seconds) and timing.repeats == gpu.FEWEST


def test_the_host_gets_a_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of which the host needs more than the GPU must not be timed by the host."""
    monkeypatch.setattr(gpu, "WARM", 0.0)
    host, flush = 2e-3, 1e-4

    class Queue(FakeClock):
        """A GPU that runs what is queued while the host goes on: a write takes `flush`, a call nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.busy_until = self.began = 0.0

        def flush(self) -> None:
            self.busy_until = max(self.busy_until, time.perf_counter()) + flush

        def start(self) -> None:
            self.began = max(self.busy_until, time.perf_counter())

        def stop(self) -> float:
            return max(self.busy_until, time.perf_counter()) - self.began

    place = gpu.Gpu(FakeArrays(), Queue())
    timing = place.interleave({"a": lambda: time.sleep(host)}, seconds_each=0.0)["a"]
    assert timing.host is not None and timing.host >= host
    assert timing.median < host / 4


def test_every_turn_starts_from_a_cold_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WARM", 0.0)
    clock = Scripted(0.0)
    place = gpu.Gpu(FakeArrays(), clock)
    runners = {name: lambda name=name: clock.log.append(name) for name in "ab"}
    place.interleave(runners, seconds_each=0.0)
    turn = [["flush", "start", *[name] * gpu.MOST_CALLS, "stop"] for name in "ab"]
    taken = gpu.FEWEST * (turn[0] + turn[1])
    once = [
        word
        for word, last in zip(clock.log, [None, *clock.log], strict=False)
        if word != last or word != "flush"
    ]
    assert once[-len(taken) :] == taken


def test_memory_is_what_a_call_adds() -> None:
    class Counted(FakeArrays):
        used, peak = 100, 100

        def used_bytes(self) -> int:
            return self.used

        def peak_bytes(self) -> int:
            return self.peak

        def forget_peak(self) -> None:
            self.peak = self.used

    arrays = Counted()

    def call() -> str:
        arrays.used, arrays.peak = 130, 200
        return "result"

    result, usage = gpu.Gpu(arrays, FakeClock()).usage(call)
    # The imagined driver's pool always says 10 used and 50 at most.
    assert result == "result" and (usage.held, usage.peak) == (30, 200 + 50 - 110)


# Beside the others ---------------------------------------------------------------------------------------


class AllPairs(NumpyDense):
    """A peer that computes something else, as SDPA does where it knows no mask."""

    name = "all_pairs"

    def prepare(self, workload: Any) -> Prepared:
        dense = super().prepare(workload)
        return replace(dense, checked=False, computes="all pairs", flops=1000)


class Gather(NumpyDense):
    name = "gather_only"

    def prepare(self, workload: Any) -> Prepared:
        return Prepared(lambda: None, flops=0, checked=False)


def test_a_row_says_how_it_stands_beside_the_others() -> None:
    case = replace(
        CASE,
        beside=(("regular", kinds.PatternSpec("random_keys", {"n": 600, "per_query": 4, "seed": 0})),),
        peers=("numpy_dense", "all_pairs", "gather_only"),
        goals=(
            kinds.Goal("slowdown", 1e9, over="regular"),
            kinds.Goal("share_of_gather", 0.0, at_least=True),
            kinds.Goal("speedup", 1e9, at_least=True, over="numpy_dense"),
        ),
    )
    found = runner.run_case(case, field_with(NumpyDense(), AllPairs(), Gather()), 0, 0.001)
    own = found[0]
    by_name = {row["contender"]: row for row in found}
    others = {"cpu-dense", "cpu-regular", "numpy_dense", "all_pairs", "gather_only"}
    assert by_name.keys() == {"cpu", *others}
    assert own["speedup"].keys() == {"numpy_dense"} and own["speedup_all_pairs"].keys() == {"all_pairs"}
    assert own["slowdown"]["regular"] == pytest.approx(own["seconds"] / by_name["cpu-regular"]["seconds"])
    assert own["share_of_gather"] == pytest.approx(by_name["gather_only"]["seconds"] / own["seconds"])
    assert [goal["met"] for goal in own["goals"]] == [True, True, False]
    assert by_name["all_pairs"]["computes"] == "all pairs" and not rows.is_peer(by_name["all_pairs"])
    assert rows.is_peer(by_name["numpy_dense"]) and "nnz" not in by_name["all_pairs"]


def test_training_is_checked_in_both_passes() -> None:
    workload = make_workload(replace(CASE, direction="training"), 0, FakeGpu())
    prepared = Own().prepare(workload)
    training = prepared.training
    assert training is not None
    gate = Gate(workload, 0)
    assert gate.verdict(prepared) == ""
    for which, name in enumerate(("out", "dq", "dk", "dv")):

        def damaged(dout: Any, which: int = which) -> Any:
            results = [np.array(array) for array in training(dout)]
            results[which][:, 0] += np.float32(0.01)
            return tuple(results)

        assert gate.verdict(replace(prepared, training=damaged)).startswith(name)


def test_what_no_compared_query_touches_has_no_gradient() -> None:
    workload = make_workload(replace(CASE, direction="backward"), 0, FakeGpu())
    prepared = Own().prepare(workload)
    backward = prepared.backward
    assert backward is not None
    gate = Gate(workload, 0)
    for which, name in enumerate(("dq", "dk", "dv")):

        def damaged(dout: Any, which: int = which) -> Any:
            results = [np.array(array) for array in backward(dout)]
            untouched = ~np.isin(np.arange(600), gate._keys if which else gate._rows)
            results[which][:, np.flatnonzero(untouched)[0]] = 1e-3
            return tuple(results)

        verdict = gate.verdict(replace(prepared, backward=damaged))
        assert verdict == f"{name}: not zero in rows that no compared query touches"


def test_long_rows_are_checked_in_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A global token selects all keys; a million of them times all rows of the panels would be too many."""
    spec = kinds.PatternSpec("longformer", {"n": 700, "window": 2, "tokens": [0]})
    monkeypatch.setattr("benchmarks.gate.MOST_SCORES", 6_000)
    gate = Gate(make_workload(replace(CASE, spec=spec), 0, FakeGpu()), 0)
    assert 8 <= len(gate._rows) < 128 and gate._mask.shape[1] == 700
    assert gate._ranges[0][0] == 0 and gate._ranges[-1][1] == 700
    monkeypatch.setattr("benchmarks.gate.MOST_SCORES", 4_000)
    gate = Gate(make_workload(replace(CASE, spec=spec), 0, FakeGpu()), 0)
    assert len(gate._rows) == 7 and 0 not in gate._rows and gate._mask.shape[1] < 60


def test_an_exception_is_told_in_one_line() -> None:
    told = attention.refusal(RuntimeError("first\nsecond"))
    assert told == {"status": "failed", "reason": "RuntimeError: first"}


def test_a_pattern_beside_counts_its_own_pairs() -> None:
    workload = make_workload(CASE, 0, FakeGpu())
    beside = OwnBeside(Own(), "full", kinds.PatternSpec("full", {"n": 600}))
    assert beside.name == "cpu-full"
    prepared = beside.prepare(workload)
    assert prepared.flops == 4 * 4 * 600 * 600 * 16 and not prepared.checked


def test_a_setting_in_full_is_measured_where_the_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"heads": 2, "kv_heads": 2, "head_dim": 16, "dtype": "float16", "device": "gpu"}
    monkeypatch.setitem(brief_reports.SETTINGS, True, small)
    monkeypatch.setitem(runner.SECONDS, "gpu", 0.001)
    field = field_with()
    configuration = [("window", "9"), *brief_reports._kind(WINDOW, field)]
    text = brief_reports._report("A window", WINDOW, configuration, [], field, 0)
    for line in ("2 x 16, float16", "cpu on Imagined GPU", "Sparsity", "selected pairs", "Performance"):
        assert line in text
    table = text.split("Performance\n")[1].split("\n\n")[0].splitlines()[2:]
    assert [line.split()[0] for line in table].count("backward") == 2 and "skipped" not in text


# JAX's side, which computes in streams of its own; and energy ------------------------------------------


def test_who_runs_in_streams_of_his_own_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of the default stream say nothing of him: he is timed by the host, from an idle GPU on."""
    monkeypatch.setattr(gpu, "WARM", 0.0)
    clock = Scripted(0.0)  # by whose events every call takes no time

    def call() -> None:
        clock.log.append("call")

    def wait() -> None:
        clock.log.append("wait")
        time.sleep(2e-3)

    place = gpu.Gpu(FakeArrays(), clock)
    timing = place.interleave({"a": call}, seconds_each=0.0, waits={"a": wait})["a"]
    last = clock.log[clock.log.index("start", len(clock.log) - 60) :]
    assert clock.log[-1] == "wait" and "stop" not in last
    begin = len(clock.log) - clock.log[::-1].index("start") - 1
    assert clock.log[begin - 1] == "synchronize" and timing.median > 0
    calls = clock.log[begin:].count("call")
    assert timing.median * calls >= 2e-3


def test_the_energy_meter_asks_for_the_gpu_at_its_address() -> None:
    asked: list[Any] = []

    class Library:
        """NVIDIA's library, which counts a joule between any two questions."""

        count = 0

        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlDeviceGetHandleByPciBusId_v2(self, address: bytes, handle: Any) -> int:
            asked.append(address)
            return 0

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, target: Any) -> int:
            self.count += 1000
            target._obj.value = self.count
            return 0

    meter = energy.EnergyMeter(Library(), "0000:1B:00.0")
    assert meter.joules() == 1.0 and meter.joules() == 2.0 and asked == [b"0000:1B:00.0"]
    silent = type("Silent", (Library,), {"nvmlInit_v2": lambda self: 999})()
    with pytest.raises(OSError, match="nvmlInit_v2 answers with status 999"):
        energy.EnergyMeter(silent, "")
    assert energy.find_meter("no address") is None or energy.find_meter("no address")


def test_a_contender_with_memory_of_its_own_has_none_counted() -> None:
    class Elsewhere(NumpyDense):
        def prepare(self, workload: Any) -> Prepared:
            return replace(super().prepare(workload), memory_counted=False, wait=lambda: None)

    case = replace(CASE, peers=("numpy_dense",))
    found = runner.run_case(case, field_with(Elsewhere()), 0, 0.001)
    by_name = {row["contender"]: row for row in found}
    assert "peak_bytes" in by_name["cpu"] and "peak_bytes" not in by_name["numpy_dense"]
    assert by_name["numpy_dense"]["clock"] == "host" and "clock" not in by_name["cpu"]
    assert "timed by the host" in tables.result_tables(found)


def test_orders_of_tokens_are_measured_beside_none() -> None:
    dilated = kinds.PatternSpec("dilated_window", {"n": 256, "window": 8, "dilation": 16})
    goal = kinds.Goal("alternatives", 1e-9, at_least=True, over="cpu-natural")
    case = replace(CASE, spec=dilated, dense=False, orders=True, goals=(goal,))
    own, *others = runner.run_case(case, field_with(), 0, 0.001)
    assert {row["contender"] for row in others} == {"cpu-natural", "cpu-declared"}
    assert all(row["status"] == "measured" for row in others)
    assert own["alternatives"].keys() == {"cpu-natural", "cpu-declared"}
    (found,) = own["goals"]
    assert found["met"] and found["goal"] == "alternatives over cpu-natural >= 1e-09"


def test_the_planner_s_choice_is_measured_beside_both_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GPU_ENGINES", ("cpu", "reference"))
    case = replace(CASE, dense=False, paths=True, goals=(kinds.Goal("over_best", 1e9),))
    own, *_ = runner.run_case(case, field_with(engine="auto"), 0, 0.001)
    assert own["alternatives"].keys() == {"reference"} and own["speedup"] == {}
    assert own["over_best"] == pytest.approx(1 / own["alternatives"]["reference"]) and own["goals"]
