"""The benchmark suite works: once as a whole at toy size, then what it promises, one by one."""

from __future__ import annotations

import io
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cases, kinds, measure, rows, run, runner, tables
from benchmarks.peers import Prepared
from benchmarks.peers.numpy_dense import Peer as NumpyDense
from benchmarks.progress import Progress

#: On a machine with a GPU this is still the host's part; tests/benchmarks/test_gpu.py has the other.
TINY = ("--tiny", "--device", "cpu", "--no-figures")

SMALL = kinds.AttentionCase(
    "small", kinds.PatternSpec("sliding_window", {"n": 96, "window": 7}), head_dim=16, dense=False
)


def rows_of(path: Path) -> list[rows.Row]:
    return list(rows.read(path))


def test_the_whole_suite_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    assert (
        run.main(["--tiny", "--device", "cpu", "--json", str(path), "--seconds", "0.02", "--no-figures"]) == 0
    )
    found = rows_of(path)
    assert {row["status"] for row in found} == {"measured"}
    kinds_of_rows = {"rate", "attention", "build", "plan", "select", "memory", "cold", "host"}
    assert {row["kind"] for row in found} == kinds_of_rows
    assert {row["case"] for row in found} == {case.name for case in cases.TINY}
    printed = capsys.readouterr().out
    for row in found:
        assert row["case"] in printed
        assert row["commit"] and row["source"] and row["versions"]["numba"] and row["machine"]["cpu"]
        if "seconds" in row:
            assert 0 < row["seconds_min"] <= row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
    own = next(row for row in found if row["case"] == "tiny/forward" and "speedup" in row)
    assert own["speedup"].keys() == {"scipy_unfused", "numpy_dense"}
    assert own["efficiency"] == pytest.approx(own["speedup_dense"] * own["density"])
    assert own["gflops"] == pytest.approx(4 * own["nnz"] * 16 / own["seconds"] / 1e9)


def test_rows_do_not_name_the_machine(tmp_path: Path) -> None:
    text = json.dumps(rows.provenance(0))
    name = platform.node()
    assert not name or name not in text.replace(platform.machine(), "")


def test_a_wrong_result_is_reported_and_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = NumpyDense.prepare

    def off_by_a_little(self: NumpyDense, workload: Any) -> Prepared:
        prepared = original(self, workload)
        return Prepared(lambda: prepared.forward() * np.float32(1.001))

    monkeypatch.setattr(NumpyDense, "prepare", off_by_a_little)
    monkeypatch.setattr(cases, "TINY", (replace(SMALL, peers=("numpy_dense",)),))
    path = tmp_path / "rows.jsonl"
    assert (
        run.main(["--tiny", "--device", "cpu", "--json", str(path), "--seconds", "0.01", "--no-figures"]) == 1
    )
    wrong = next(row for row in rows_of(path) if row["contender"] == "numpy_dense")
    assert wrong["status"] == "wrong" and "seconds" not in wrong and "error" in wrong["reason"]
    assert "wrong: out:" in capsys.readouterr().out


def test_a_contender_that_breaks_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: NumpyDense, workload: Any) -> Prepared:
        raise MemoryError("no room")

    monkeypatch.setattr(NumpyDense, "prepare", broken)
    field = runner.Field.here("reference")
    found = runner.run_case(replace(SMALL, peers=("numpy_dense", "scipy_unfused")), field, 0, 0.001)
    status = {row["contender"]: row["status"] for row in found}
    assert status == {"reference": "measured", "scipy_unfused": "measured", "numpy_dense": "failed"}
    assert found[-1]["reason"] == "MemoryError: no room"


def test_a_gradient_off_in_one_row_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gate import Gate
    from benchmarks.workload import Host, make_workload

    case = kinds.AttentionCase(
        "long", kinds.PatternSpec("sliding_window", {"n": 700, "window": 9}), head_dim=8, direction="backward"
    )
    workload = make_workload(case, 0, Host())
    prepared = NumpyDense().prepare(workload)
    backward = prepared.backward
    assert backward is not None
    gate = Gate(workload, 0)
    assert gate.verdict(prepared) == ""
    for which, row in ((0, 3), (1, 350), (2, 699)):

        def damaged(dout: Any, which: int = which, row: int = row) -> Any:
            gradients = backward(dout)
            for head in range(4):
                gradients[which][head, row] += np.float32(0.01) * (np.abs(dout[head]).sum() > 0)
            return gradients

        verdict = gate.verdict(Prepared(prepared.forward, damaged))
        assert verdict.startswith(("dq", "dk", "dv")[which])


@pytest.mark.parametrize("peer", ["numpy_dense", "scipy_unfused"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_peers_without_a_package_of_their_own_pass_the_gate(peer: str, direction: str, dtype: str) -> None:
    """Grouped heads and rows without keys included: a peer must not lose by a mistake of ours."""
    spec = kinds.PatternSpec("global_tokens", {"n": 64, "tokens": [3, 20]})
    if peer == "scipy_unfused":
        spec = kinds.PatternSpec("full", {"n": 40, "n_keys": 24})
    case = kinds.AttentionCase(
        "peer", spec, 4, 2, 8, dtype=dtype, direction=direction, dense=False, peers=(peer,)
    )
    field = runner.Field.here("reference")
    assert {row["status"] for row in runner.run_case(case, field, 0, 0.001)} == {"measured"}


def test_a_peer_that_is_less_exact_is_timed_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    original = NumpyDense.prepare

    def rounded(self: NumpyDense, workload: Any) -> Prepared:
        prepared = original(self, workload)
        return Prepared(lambda: prepared.forward() * np.float32(1.0 + 2.0**-19))

    monkeypatch.setattr(NumpyDense, "prepare", rounded)
    field = runner.Field.here("reference")
    found = runner.run_case(replace(SMALL, peers=("numpy_dense",)), field, 0, 0.001)
    assert {row["contender"]: row["within_budget"] for row in found} == {
        "reference": True,
        "numpy_dense": False,
    }
    assert "less exact than our budget" in tables.result_tables(found)


def test_ctrl_c_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = runner.run_case

    def interrupted(case: kinds.Case, *rest: Any) -> list[rows.Row]:
        if case.name == "tiny/forward":
            raise KeyboardInterrupt
        return original(case, *rest)

    monkeypatch.setattr(runner, "run_case", interrupted)
    path = tmp_path / "rows.jsonl"
    assert (
        run.main(["--tiny", "--device", "cpu", "--json", str(path), "--seconds", "0.01", "--no-figures"])
        == 130
    )
    assert [row["case"] for row in rows_of(path)] == ["tiny/sgemm"]
    captured = capsys.readouterr()
    assert "tiny/sgemm" in captured.out and "1 rows are kept" in captured.err


def test_after_the_limit_no_case_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def slow(case: kinds.Case, *_: Any) -> list[rows.Row]:
        ran.append(case.name)
        measure.time.sleep(0.05)
        return []

    monkeypatch.setattr(runner, "run_case", slow)
    options = ["--tiny", "--device", "cpu", "--json", str(tmp_path / "rows.jsonl"), "--no-figures"]
    assert run.main([*options, "--limit", str(0.08 / 60)]) == 0
    assert ran == [case.name for case in cases.TINY[:2]]
    assert f"{len(cases.TINY) - 2} of {len(cases.TINY)} cases were not started" in capsys.readouterr().out


def test_list_and_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list", "--cases", "target/*", "--peer", "none"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "target/window_backward"
    assert run.main(["--cases", "no such case"]) == 2


def test_an_engine_that_is_not_there_is_skipped_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    arguments = ["--tiny", "--cases", "tiny/forward", "--cases", "tiny/memory", "--engine", "cuda-tile"]
    assert run.main([*arguments, "--peer", "none", "--json", str(path), "--no-figures"]) == 0
    for row in rows_of(path):
        assert row["status"] == "skipped" and "cuda-tile" in row["reason"]


def test_dtype_replaces_that_of_attention_cases(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    arguments = ["--tiny", "--cases", "tiny/forward", "--dtype", "bfloat16", "--peer", "none"]
    assert run.main([*arguments, "--json", str(path), "--seconds", "0.01", "--no-figures"]) == 0
    assert {row["dtype"] for row in rows_of(path)} == {"bfloat16"}


def test_turns_are_interleaved() -> None:
    order: list[str] = []

    def slow(name: str) -> Any:
        def call() -> None:
            order.append(name)
            measure.time.sleep(measure.BURST)

        return call

    timings = measure.interleave({"a": slow("a"), "b": slow("b")}, seconds_each=0.01, fewest=3, most=3)
    assert "".join(order[4:]) == "ababab"
    assert timings["a"].repeats == 3 and timings["a"].median >= measure.BURST


def test_progress_shows_the_time_left_on_a_terminal_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        progress = Progress(4.0, stream)
        progress.show("first")
        progress.step(2.0)
        progress.show("second")
        progress.clear()
        assert ("50%" in stream.getvalue() and "left  second" in stream.getvalue()) == shown


def test_peak_memory_sees_an_array_that_is_gone() -> None:
    measure.reset_peak_memory()
    before = measure.peak_memory()
    np.ones(60_000_000, np.uint8).sum()
    after = measure.peak_memory()
    assert before is None or after is None or after - before > 30_000_000


def test_tables_show_every_status() -> None:
    head = {"case": "c", "contender": "x", "kind": "attention", "checked": True}
    found = [
        {**head, "status": "skipped", "reason": "no compiler"},
        {
            **head,
            "status": "measured",
            "seconds": 1.0,
            "seconds_low": 0.9,
            "seconds_high": 1.1,
            "gflops": 5.0,
        },
    ]
    text = tables.result_tables(found)
    assert "skipped: no compiler" in text and "1 s" in text and "10%" in text
