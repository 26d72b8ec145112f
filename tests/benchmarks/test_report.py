"""Rows to text: the published pages follow the rows, and a lost case is not hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, rows
from reports import make_report

MACHINE = {"cpu": "Model X", "threads": 2, "cores": 2}
SHARED: rows.Row = {"machine": MACHINE, "versions": {"numpy": "2.4"}, "commit": "abc", "status": "measured"}


def attention(case: str, contender: str, seconds: float, **more: Any) -> rows.Row:
    spread = {"seconds_low": seconds * 0.98, "seconds_high": seconds * 1.02}
    facts = {
        "kind": "attention",
        "direction": "forward",
        "checked": True,
        "density": 0.1,
        "gflops": 1 / seconds,
    }
    return {**SHARED, **facts, "case": case, "contender": contender, "seconds": seconds, **spread, **more}


GOALS = [{"goal": "speedup over torch_flex >= 2", "value": 0.5, "met": False}]
ROWS = [
    attention("target/a", "cpu", 0.2, speedup={"torch_flex": 0.5}, speedup_dense=4.0, goals=GOALS),
    attention("target/a", "torch_flex", 0.1),
    attention("target/b", "cpu", 0.1, speedup={"torch_flex": 3.0}, speedup_dense=8.0),
    attention("target/b", "torch_flex", 0.3),
    {
        **SHARED,
        "kind": "build",
        "case": "build/x",
        "contender": "cpu",
        "pattern": "x(n=1)",
        "seconds": 0.01,
        "tiles": 7,
        "tiles_bytes": 100,
        "peak_extra_bytes": None,
    },
]


DEVICE = {"name": "Imagined GPU", "driver": "1.2.3", "clocks": "not locked"}


def on_gpu(case: str, contender: str, seconds: float, **more: Any) -> rows.Row:
    memory = {"peak_bytes": 2_000_000, "host_seconds": seconds / 10, "gpairs_per_second": 16.0}
    return attention(case, contender, seconds, device=DEVICE, **memory, **more)


GPU_ROWS = [
    on_gpu(
        "gpu/a",
        "cuda-warp",
        0.002,
        engine="cuda-warp",
        speedup={"flex_cuda": 3.0},
        speedup_all_pairs={"sdpa_cudnn": 0.5},
        speedup_dense=5.0,
        share_of_gather=0.89,
        goals=[{"goal": "share_of_gather >= 0.6", "value": 0.89, "met": True}],
    ),
    on_gpu("gpu/a", "flex_cuda", 0.006),
    on_gpu("gpu/a", "sdpa_cudnn", 0.001, checked=False, computes="all pairs"),
    {
        **SHARED,
        "kind": "host",
        "case": "gpu/host",
        "contender": "cuda-warp",
        "device": DEVICE,
        "seconds": 4e-6,
    },
    {
        **SHARED,
        "kind": "rate",
        "what": "product",
        "case": "gpu/product",
        "contender": "torch_product",
        "device": DEVICE,
        "gflops": 7.5e5,
    },
    {
        **SHARED,
        "kind": "gather",
        "case": "gpu/gather",
        "contender": "gather_only",
        "device": DEVICE,
        "gbytes_per_second": 9282.0,
    },
]


def test_published_pages_follow_the_published_rows() -> None:
    assert make_report.main(["--check"]) == 0


def test_a_faster_peer_and_a_missed_goal_are_said_plainly() -> None:
    for text in (make_report.report_text(ROWS), make_report.readme_block(ROWS)):
        assert "`target/a`: torch_flex is 2.00x faster" in text
        assert "**missed**" in text
        assert "target/b`: torch_flex is" not in text
        assert "Model X, 2 threads" in text


def test_a_gpu_has_a_section_of_its_own() -> None:
    text = make_report.report_text([*ROWS, *GPU_ROWS])
    host, device = text.split("## Imagined GPU, driver 1.2.3, clocks not locked")
    assert "gpu/a" not in host and "target/a" not in device
    assert make_report.GPU_NOTE in device and "GFLOP/s |" not in device
    assert "| `gpu/a` | 10.0% | 2 ms | cuda-warp | 0.5 | 16 | 89% | 2 MB | 5.00x | 6 ms | 1 ms |" in device
    assert "flex_cuda | sdpa_cudnn, all pairs |" in device
    for line in ("`gpu/product` | 750 TFLOP/s", "`gpu/gather` | 9282 GB/s", "`gpu/host` | 4 us"):
        assert line in device
    assert "Nowhere in these rows." in device, "all pairs are not the case"
    assert "share_of_gather >= 0.6" in make_report.readme_block(GPU_ROWS)


def test_the_last_row_for_the_same_thing_counts() -> None:
    newer = attention("target/a", "torch_flex", 0.4)
    (chosen,) = make_report.machines([*ROWS, newer]).values()
    assert [row["seconds"] for row in chosen if row["contender"] == "torch_flex"] == [0.4, 0.3]


def test_the_block_replaces_itself() -> None:
    page = f"before\n{make_report.BEGIN}\nold\n{make_report.END}\nafter\n"
    once = make_report.with_block(page, make_report.readme_block(ROWS))
    assert once.startswith("before\n") and once.endswith("\nafter\n") and "old" not in once
    assert make_report.with_block(once, make_report.readme_block(ROWS)) == once


def test_figures_are_drawn_from_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_report, "FIGURES", tmp_path)
    drawn = make_report.draw_figures(ROWS)
    assert {path.name for path in drawn} == {"patterns.png", "peers.png", "density.png", "building.png"}
    drawn = make_report.draw_figures([*ROWS, *GPU_ROWS])
    assert {path.name for path in drawn} >= {"peers.png", "gpu_peers.png", "gpu_density.png"}
    local = make_report.draw_run(ROWS)
    assert local is not None and local.stat().st_size > 5_000
    assert make_report.draw_run([ROWS[1]]) is None


def test_the_same_rows_draw_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = []
    for folder in ("one", "two"):
        monkeypatch.setattr(make_report, "FIGURES", tmp_path / folder)
        pictures.append([path.read_bytes() for path in make_report.draw_figures(ROWS)])
    assert pictures[0] == pictures[1]


def test_compare_marks_what_moved_beyond_the_noise(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    rows.append(old, [attention("a", "cpu", 1.0), attention("b", "cpu", 1.0), attention("c", "cpu", 1.0)])
    rows.append(new, [attention("a", "cpu", 0.5), attention("b", "cpu", 1.02), attention("c", "cpu", 2.0)])
    assert compare.main([str(old), str(new)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert lines["a"].endswith("faster") and lines["c"].endswith("slower")
    assert not lines["b"].endswith(("faster", "slower"))
    assert compare.main([str(old), str(new), "--fail-on-slower"]) == 1


def test_compare_keeps_processors_and_gpus_apart() -> None:
    host, device = attention("a", "torch", 1.0), on_gpu("a", "torch", 0.1)
    assert len(compare.by_key([host, device])) == 2
    table, slower = compare.compare([host, device], [host, on_gpu("a", "torch", 0.2)])
    assert slower == 1 and table.count("only in") == 0


def test_compare_knows_commits_and_says_what_it_cannot_find(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.append(
        tmp_path / "cpu.jsonl", [attention("a", "cpu", 1.0), attention("a", "cpu", 1.0, commit="abd")]
    )
    monkeypatch.setattr(rows, "read_all", lambda: list(rows.read(tmp_path / "cpu.jsonl")))
    assert compare.main(["abc", "abd"]) == 0
    assert compare.main(["ab", "abc"]) == 2
    assert "several commits" in capsys.readouterr().err
    assert compare.main(["missing", "abc"]) == 2
    assert "neither a file nor a commit" in capsys.readouterr().err


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"case": 1}\n{"case":', "utf-8")
    with pytest.raises(ValueError, match="line 2: not a row"):
        list(rows.read(path))
