"""Rows to text: the published pages follow the rows, and a lost case is not hidden."""

from __future__ import annotations

import doctest
import fnmatch
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cases, compare, roofline, rows
from reports import make_report, report_tables

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
        "heads": 1,
        "kv_heads": 1,
        "n_q": 1000,
        "n_k": 1000,
        "head_dim": 64,
        "value_dim": 64,
        "dtype": "float32",
        "tokens_per_second": 1000 / seconds,
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
        "dtype": "float16",
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
    assert "- `gpu/a`: sdpa_cudnn computes all pairs, 10 times ours, 2.00x faster" in device
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


def rate(case: str, **measured: Any) -> rows.Row:
    return {**SHARED, "kind": "rate", "case": case, "contender": "x", "dtype": "float32", **measured}


def swept(prefix: str, **more: Any) -> list[rows.Row]:
    """Rows of every table that has a figure of its own."""
    make: Any = on_gpu if prefix else attention
    found = []
    for direction in ("forward", "backward"):
        for n in (1024, 4096):
            name, sizes = f"{prefix}length/w_{n}_{direction}", {"n_q": n, "n_k": n, "direction": direction}
            found += [
                make(
                    name, "cuda-auto" if prefix else "cpu", n * 1e-6, speedup={"peer": 2.0}, **sizes, **more
                ),
                make(name, "peer", n * 2e-6, **sizes, **more),
                make(name, "cpu-dense", n * 3e-6, checked=False, **sizes, **more),
            ]
    found.append(
        make(
            f"{prefix}path/a",
            "cuda-auto" if prefix else "cpu",
            0.2,
            speedup={},
            alternatives={"cpu-tiles": 0.5, "cpu-rows": 1.0},
            over_best=2.0,
            **more,
        )
    )
    return found


MEMORY: rows.Row = {
    **SHARED,
    "kind": "memory",
    "case": "memory/a",
    "contender": "cpu",
    "peak_extra_bytes": 3e6,
    "results_bytes": 2e6,
    "square_bytes": 4e9,
}
RATES = [
    rate("machine/product", what="product", gflops=100.0),
    rate("machine/copy", what="copy", gbytes_per_second=10.0),
]


def test_figures_are_drawn_from_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_report, "FIGURES", tmp_path)
    drawn = make_report.draw_figures(ROWS)
    assert {path.stem for path in drawn} == {"patterns", "peers", "density", "building"}
    drawn = make_report.draw_figures([*ROWS, *GPU_ROWS])
    assert {path.stem for path in drawn} >= {"peers", "gpu_peers", "gpu_density"}
    local = make_report.draw_run([*ROWS, MEMORY])
    assert {path.stem for path in local} == {"local", "local_memory", "local_building"}
    assert min(path.stat().st_size for path in local) > 5_000
    assert make_report.draw_run([ROWS[1]]) == []


def test_every_figure_can_be_drawn_and_none_is_missing_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_report, "FIGURES", tmp_path)
    host = [*ROWS, *RATES, MEMORY, *swept("")]
    gpu = [{**row, "device": DEVICE} for row in [*RATES, *swept("gpu-", engine="e", joules=0.5, watts=500.0)]]
    found = [*host, *GPU_ROWS, *gpu]
    names = {path.stem for path in make_report.draw_figures(found)}
    kinds = make_report.KINDS
    assert names == {"patterns"} | {name for name, kind in kinds.items() if kind.host_cases} | {
        f"gpu_{name}" for name, kind in kinds.items() if kind.gpu_cases
    }
    text = make_report.report_text(found)
    assert "no rows for the figure" not in text
    for line in ("## Energy", "0.5 J | 500 W", "cpu-tiles would have been 2.00x faster", "of the roof"):
        assert line in text


def test_a_figure_without_rows_says_which_command_makes_them() -> None:
    text = make_report.report_text(ROWS)
    assert "figure `length` yet: `python benchmarks/run.py --cases 'length/*'" in text
    assert "figure `gpu_energy` yet: `python benchmarks/run.py --cases 'gpu/energy_*'" in text
    assert "figures/length.png" not in text
    names = {case.name for case in cases.all_cases()}
    for kind in make_report.KINDS.values():
        for glob in filter(None, (kind.host_cases, kind.gpu_cases)):
            assert fnmatch.filter(names, glob), f"no case is called {glob}"


def test_the_roof_is_the_slower_of_product_and_copy() -> None:
    roofs = roofline.roofs_of(RATES)
    row = attention("a/b", "cpu", 0.1, gflops=50.0)
    # 5 GFLOP at 100 GFLOP/s are 50 ms; a megabyte at 10 GB/s is 0.1 ms.
    assert roofs.share(row) == pytest.approx(0.5)
    few = attention("a/b", "cpu", 0.001, gflops=0.01)
    assert roofs.share(few) == pytest.approx(4 * 4 * 64 * 1000 / 1e10 / 0.001)
    assert roofs.share({**row, "dtype": "float16"}) == pytest.approx(0.5), "a CPU multiplies halves as floats"
    assert roofs.share({**row, "dtype": "float64"}) is None
    assert roofline.roofs_of([]).share(row) is None
    assert doctest.testmod(roofline) == (0, 2)


def test_columns_that_stay_empty_are_left_out() -> None:
    ((title, table),) = report_tables.attention_tables(ROWS[:4])
    assert title == report_tables.TITLES["target"]
    assert table.splitlines()[0] == "| case | density | ours | GFLOP/s | over our dense mode | torch_flex |"


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


def test_what_is_done_once_is_shown_for_everybody() -> None:
    found = [
        attention("target/a", "cpu", 0.2, speedup={}, plan_seconds=0.001, first_call_seconds=2.0),
        attention("target/a", "torch_flex", 0.1, mask_seconds=0.5, compile_seconds=9.0),
        attention("length/a", "cpu", 0.1, speedup={}, plan_seconds=0.001),
    ]
    assert report_tables.setup_table(found).splitlines()[2:] == [
        "| `target/a` | cpu | 1 ms |  | 2 s |",
        "| `target/a` | torch_flex | 500 ms | 9 s |  |",
    ]
    assert report_tables.setup_table(found[2:]) == ""
