"""The technical report follows the files, says what is missed, refuses invented numbers, and is well set."""

from __future__ import annotations

import doctest
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from benchmarks import rows
from numba_sparse_attn.planner import Plan
from reports.paper import (
    breaking,
    build,
    columns,
    document,
    fonts,
    graphics,
    grids,
    ledger,
    markdown,
    pdf,
    quality,
    shapes,
    template,
)
from reports.paper.appendix import APPENDIX
from reports.paper.evidence import Evidence, MissingError
from reports.paper.ledger import Ledger, Source

FORM = columns.Format()
MACHINE = {"cpu": "Model X", "threads": 2}
ROWS: list[rows.Row] = [
    {
        "case": "target/a",
        "kind": "attention",
        "contender": "cpu",
        "pattern": "a(n=8)",
        "direction": "forward",
        "density": 0.125,
        "seconds": 0.25,
        "gflops": 80.0,
        "speedup": {"torch_flex": 0.5, "torch_sdpa": 3.0},
        "speedup_dense": 4.0,
        "efficiency": 0.5,
        "goals": [{"goal": "speedup over torch_flex >= 2", "value": 0.5, "met": False}],
    },
    {
        "case": "target/a",
        "kind": "attention",
        "contender": "torch_flex",
        "seconds": 0.125,
        "compile_seconds": 9.0,
    },
    {
        "case": "build/a",
        "kind": "build",
        "contender": "patterns",
        "seconds": 4.2e-5,
        "tiles_bytes": 5_000,
        "goals": [{"goal": "tiles_bytes <= 1e+06", "value": 5e3, "met": True}],
    },
]


@pytest.fixture(scope="module")
def published() -> Evidence:
    return Evidence()


@pytest.fixture(scope="module")
def blocks(published: Evidence) -> list[document.Block]:
    return build.blocks_of(published)


@pytest.fixture(scope="module")
def placed(blocks: list[document.Block]) -> list[columns.Placed]:
    heights = {name: height for name, (height, _) in graphics.FIGURES.items()}
    return pdf.placed_on_pages(blocks, FORM, heights)


@pytest.fixture
def few(tmp_path: Path) -> Evidence:
    """Two cases of a host, of which one is lost."""
    shared = {"status": "measured", "machine": MACHINE, "versions": {}, "commit": "abc", "checked": True}
    rows.append(tmp_path / "data" / "cpu.jsonl", [{**row, **shared} for row in ROWS])
    return Evidence(tmp_path / "data", tmp_path / "results")


def filled(text: str, evidence: Evidence, references: str = "") -> str:
    return template.filled(text, references, evidence, Ledger())


# The published report ------------------------------------------------------------------------------------


def test_published_report_follows_the_files() -> None:
    assert build.main(["--check"]) == 0


def test_a_stale_report_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "ROOT", tmp_path)
    for name in ("MARKDOWN", "PDF"):
        path = tmp_path / getattr(build, name).name
        path.write_bytes(getattr(build, name).read_bytes().replace(b"a", b"b", 1))
        monkeypatch.setattr(build, name, path)
    assert build.main(["--check"]) == 1
    assert "report.md does not follow" in capsys.readouterr().out


def test_who_computes_the_gradients_of_tiles_is_said_as_it_is(blocks: list[document.Block]) -> None:
    said = "Gradients of its calls come from the warp engine." in markdown.markdown(blocks)
    assert said == hasattr(Plan, "_gradient_plan"), "tell it anew in reports/paper/text/30_engines.md"


def test_every_mark_has_its_entry_and_every_entry_its_mark(blocks: list[document.Block]) -> None:
    text, sources = markdown.markdown(blocks).split(f"## {APPENDIX}")
    marks = {int(mark) for mark in re.findall(r"<sup>(\d+)</sup>", text)}
    entries = {int(entry) for entry in re.findall(r"^\| (\d+) \|", sources, re.MULTILINE)}
    assert marks == entries == set(range(1, len(marks) + 1))


def test_pictures_and_references_are_there(blocks: list[document.Block]) -> None:
    text = markdown.markdown(blocks)
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(pictures) >= 4
    assert all((build.MARKDOWN.parent / picture).exists() for picture in pictures)
    cited = {
        int(number) for group in re.findall(r"\[(\d+(?:, \d+)*)\]", text) for number in group.split(", ")
    }
    listed = {int(number) for number in re.findall(r"^(\d+)\. ", text, re.MULTILINE)}
    assert cited == listed


# The text ------------------------------------------------------------------------------------------------


def test_numbers_come_from_rows_and_leave_their_source(few: Evidence) -> None:
    book = Ledger()
    text = template.filled("It takes {{ time target/a }}, or {{ time build/a }}.", "", few, book)
    assert text.startswith("It takes 250\u00a0ms^1^, or 42\u00a0µs^2^.")
    assert book.numbered()[0] == (
        1,
        Source("cpu.jsonl", "target/a", "python benchmarks/run.py --cases '<place>' --json cpu.jsonl"),
        {"seconds": "250\u00a0ms"},
    )


def test_the_same_source_has_one_mark(few: Evidence) -> None:
    text = filled("{{ time target/a }} {{ beside target/a torch_sdpa }} {{ time build/a }}", few)
    assert re.findall(r"\^(\d+)\^", text) == ["1", "1", "2"]
    assert "3.00^1^ times as fast as" in text
    assert filled('{{ goal target/a "speedup over torch_flex" }}', few).startswith("2^1^")


@pytest.mark.parametrize(
    ("placeholder", "said"),
    [
        ("time target/b", "target/b"),
        ("time target/a jax_xla", "jax_xla"),
        ("beside target/a jax_xla", "speedup.jax_xla"),
        ("machine gpu", "no rows of the gpu"),
        ("quality language perplexity tests", "language"),
        ("logits max_error", "logits"),
        ("constant numba_sparse_attn/formats/tiles.py MISSING", "MISSING"),
        ("constant nowhere.py TILE", "nowhere.py"),
        ("all_pairs_table host", "nothing is lost"),
        ("goal target/a seconds", "no goal of seconds"),
        ("time", "time"),
    ],
)
def test_what_no_file_has_stops_the_report(few: Evidence, placeholder: str, said: str) -> None:
    with pytest.raises(MissingError, match=re.escape(said)):
        filled(f"{{{{ {placeholder} }}}}", few)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It is 3.5 times as fast.", "3.5"),
        ("Of 24 goals", "24"),
        ("{{ nothing }}", "names nothing"),
        ("{{ _noted }}", "names nothing"),
        ("{{ see figure a }}", "no figure a"),
        ("{{ cite nobody2020 }}", "nobody2020"),
        (":::if rain\n:::endif", "no condition"),
        (":::endif", "without a condition"),
        (":::if result language", "without its"),
    ],
)
def test_mistakes_of_the_text_are_named(few: Evidence, text: str, said: str) -> None:
    with pytest.raises(template.TextError, match=re.escape(said)):
        filled(text, few)


def test_names_and_code_may_have_digits(few: Evidence) -> None:
    text = "float16 on sm_90 and H200, FlashAttention-2, a 64-bit word, `n=4096`, $2^n$"
    assert filled(text, few).startswith(text)


def test_what_is_not_cited_must_not_be_listed(few: Evidence) -> None:
    references = "- one2020: A. One. 2020.\n- two2021: B. Two,\n  twice. 2021.\n"
    text = filled("First {{ dated two2021 }}, then {{ cite one2020 two2021 }}.", few, references)
    assert text.startswith("First (2021) [1], then [2, 1].")
    assert text.endswith("1. B. Two, twice. 2021.\n2. A. One. 2020.\n")
    with pytest.raises(template.TextError, match="one2020"):
        filled("{{ cite two2021 }}", few, references)


def test_conditions_follow_the_rows(few: Evidence) -> None:
    conditions = {
        "cases host target/*": True,
        "cases gpu *": False,
        "result language": False,
        "lost host speedup": True,
        "lost host speedup_all_pairs": False,
        "goals host reached": True,
        "goals host missed": True,
    }
    lines = [f":::if {condition}\n<{condition}>\n:::endif" for condition in conditions]
    kept = filled("\n".join([":::if cases host *", *lines, ":::endif"]), few)
    assert {condition: f"<{condition}>" in kept for condition in conditions} == conditions
    assert "gone" not in filled(":::if cases gpu *\n:::if cases host *\ngone\n:::endif\n:::endif", few)


def test_numbering_counts_what_is_kept(few: Evidence) -> None:
    table = ":::table {}\ncaption\n| a | b |\n|---|--:|\n| x | y |\n:::\n"
    text = f":::if result language\n{table.format('gone')}:::endif\n{table.format('kept')}\n"
    text += "{{ see table kept }}"
    assert "\nTable 1\n" in filled(text, few)


def test_losses_and_missed_goals_are_said_plainly(few: Evidence) -> None:
    text = filled(
        "{{ losses host }}; {{ goals host }}; {{ all_pairs_losses host }}\n\n"
        "{{ missed_table host }}\n\n{{ reached_table host }}\n\n{{ lost_table host }}\n\n"
        "{{ attention_table host target/* }}",
        few,
    ).replace("\u00a0", " ")
    assert "a peer is faster in 1 of the 2 comparisons^1^" in text
    assert "1 of 2 goals^1^ are reached, 1 missed" in text
    assert "in none of 0 comparisons^1^" in text
    assert "| `target/a`^2^ | speedup over `torch_flex` ≥ 2.00 | 0.50 |" in text
    assert "| `build/a`^3^ | tiles bytes ≤ 1 MB | 5 kB |" in text
    assert "| `target/a`^2^ | `torch_flex` | 250 ms | 2.00 |" in text
    assert "**0.50** `torch_flex` |" in text


def test_families_are_compared_with_dense_attention() -> None:
    def row(family: str, name: str, density: float, loss: float) -> dict[str, Any]:
        sums = {"loss": [loss], "hits": [1], "count": [2]}
        facts = {
            "document": name,
            "digest": name,
            "tokens": 4,
            "pairs": 5,
            "positions": sums,
            "changes": sums,
        }
        return {"family": family, "density": density, **facts}

    content = {
        "rows": [row("dense", name, 1.0, 2.0) for name in "ab"]
        + [row("window", name, 0.5, 4.0) for name in "ab"]
        + [row("strided", name, 0.5, 3.0) for name in "ab"]
    }
    found = quality.measured(content, "language", "perplexity")
    book = Ledger()
    assert quality.phrase(found, "best", "", 0.5, book) == "`strided`^1^"
    assert quality.phrase(found, "to_dense", "window", 0.5, book) == "2.72\u00a0[2.72,\u00a02.72]^2^"
    assert quality.phrase(found, "mean", "dense", 0.0, book) == "2.72\u00a0[2.72,\u00a02.72]^3^"
    assert quality.phrase(found, "documents", "", 0.0, book) == "2^4^"
    assert quality.phrase(found, "tests", "", 0.0, book) == "none of 3 tests^5^"
    lines = quality.table(
        [found, quality.measured(content, "language", "perplexity_changes")], book
    ).splitlines()
    assert lines[0] == "| family | all tokens, density 0.5^6^ | changes, density 0.5^7^ |"
    assert lines[3].startswith("| `strided` | **1.65**\u00a0[1.65,\u00a01.65] |")
    with pytest.raises(MissingError, match="random"):
        quality.phrase(found, "mean", "random", 0.5, book)
    assert quality.MEASURES["accuracy"].show_difference(-0.0001) == "+0.0"


def test_lines_of_a_pattern_come_from_its_family(tmp_path: Path) -> None:
    lines = dict(quality.pattern_lines("sliding_window"))
    assert lines and all(budget.startswith(("language, ", "code, ", "retrieval, ")) for budget in lines)
    assert all(re.fullmatch(r".* \[.*\].*; \d+ documents", text) for text in lines.values())
    assert quality.pattern_lines("strided_heads") == []
    assert quality.pattern_lines("sliding_window", tmp_path) == []


def test_examples_in_docstrings() -> None:
    for module in (ledger, grids, document):
        assert doctest.testmod(module).failed == 0


# The pages -----------------------------------------------------------------------------------------------


def test_the_report_has_four_to_six_pages(placed: list[columns.Placed]) -> None:
    """Behind them are references, and sources, which grow with the rows."""
    (begin,) = {
        item.page
        for item in placed
        for shape in item.box.shapes
        if isinstance(shape, shapes.Letters) and shape.text == "References" and shape.style == "bold"
    }
    assert 4 <= begin + 1 <= 6


def test_a_table_higher_than_a_page_is_cut() -> None:
    lines = tuple((f"`case_{number}`", "1") for number in range(150))
    table = document.Table(1, "All.", ("case", "value"), lines, (False, True))
    parts = shapes.set_block(table, FORM.column, FORM.body, {})
    assert len(parts) == 3
    assert all(isinstance(part, shapes.Float) and part.box.height < FORM.length for part in parts)
    words = [shape.text for part in parts for shape in part.box.shapes if isinstance(shape, shapes.Letters)]
    assert [word for word in words if word.startswith("case_")] == [f"case_{number}" for number in range(150)]


def right_edge(shape: shapes.Shape) -> float:
    if isinstance(shape, shapes.Letters):
        return shape.x + fonts.width(shape.text, shape.style, shape.size)
    return shape.x + shape.width


def test_nothing_stands_out_of_its_column(placed: list[columns.Placed]) -> None:
    for item in placed:
        wide = max((right_edge(shape) for shape in item.box.shapes), default=0.0)
        room = FORM.body if wide > FORM.column + 1.0 and item.x == FORM.side else FORM.column
        assert wide <= room + 0.6, item
        assert FORM.top - 1.0 <= item.y and item.y + item.box.height <= FORM.height - FORM.foot + 1.0, item


def test_boxes_do_not_overlap(placed: list[columns.Placed]) -> None:
    def across(item: columns.Placed) -> tuple[float, float]:
        return item.x, item.x + max((right_edge(shape) for shape in item.box.shapes), default=0.0)

    for number, first in enumerate(placed):
        for second in placed[number + 1 :]:
            if first.page != second.page:
                continue
            (left, right), (other_left, other_right) = across(first), across(second)
            beside = right <= other_left + 0.6 or other_right <= left + 0.6
            above = (
                first.y + first.box.height <= second.y + 0.1 or second.y + second.box.height <= first.y + 0.1
            )
            assert beside or above, (first, second)


def test_headings_and_announcements_stand_with_what_follows(placed: list[columns.Placed]) -> None:
    """Floats may come between; nothing that is kept may end a column."""
    by_column: dict[tuple[int, float], list[columns.Placed]] = {}
    for item in placed:
        by_column.setdefault((item.page, item.x), []).append(item)
    for found in by_column.values():
        assert not max(found, key=lambda item: item.y).box.keep


def words(text: str) -> list[breaking.Piece]:
    return breaking.pieces_of([document.Run(text, "plain")], 9.0)


def text_of(lines: Sequence[breaking.Line]) -> list[str]:
    return ["".join(piece.text for _, piece in line.pieces) for line in lines]


@pytest.mark.parametrize("column", [60.0, 100.0, 240.0])
def test_lines_hold_all_words_in_order_and_fit(column: float) -> None:
    text = "a pattern is a set, and behaves like one: union, intersection, difference and complement " * 3
    lines = breaking.break_lines(words(text), column, 9.0)
    assert "".join(text_of(lines)) == text.replace(" ", "")
    assert all(line.width <= column + 1e-6 for line in lines)
    # A column that takes two words a line has no spaces to stretch.
    full = [line for line in lines[:-1] if line.width > column - 1e-6]
    assert len(full) >= 0.8 * (len(lines) - 1) or column < 100.0


def test_long_names_are_broken_at_their_joints_only() -> None:
    name = "numba_sparse_attn/cuda/device/tile_softmax.py"
    lines = breaking.break_lines(breaking.pieces_of([document.Run(name, "code")], 9.0), 80.0, 9.0)
    assert "".join(text_of(lines)) == name
    assert all(part.endswith(("_", "/", ".")) for part in text_of(lines)[:-1])


def test_numbers_stay_with_their_units_and_marks() -> None:
    for column in range(40, 90, 5):
        runs = document.runs_of(f"it takes 430{ledger.UNBREAKABLE}µs^3^, or more")
        lines = text_of(breaking.break_lines(breaking.pieces_of(runs, 9.0), float(column), 9.0))
        assert any(f"430{ledger.UNBREAKABLE}µs3," in line for line in lines)


def test_a_float_waits_for_room_and_the_last_columns_are_even() -> None:
    line = shapes.Box(10.0, (), 0.0)
    tall = shapes.Float(shapes.Box(400.0, (shapes.Rule(0.0, 0.0, 9.0, 1.0),), 5.0))
    flow = [shapes.Float(shapes.Box(50.0, ()), wide=True), *[line] * 50, tall, *[line] * 60]
    placed = columns.compose(flow, FORM)
    (floated,) = [item for item in placed if item.box is tall.box]
    assert floated.y == pytest.approx(FORM.top + 50.0), "on top of the right column"
    last = max(item.page for item in placed)
    feet = {}
    for item in placed:
        if item.page == last:
            feet[item.x] = max(feet.get(item.x, 0.0), item.y + item.box.height)
    assert len(feet) == 2 and abs(feet[FORM.side] - max(feet.values())) <= 10.0 + 1e-6


def test_what_has_no_room_below_a_wide_float_goes_to_the_next_page() -> None:
    wide = shapes.Float(shapes.Box(500.0, ()), wide=True)
    tall = shapes.Float(shapes.Box(400.0, ()))
    placed = columns.compose([wide, shapes.Box(10.0, ()), tall, shapes.Box(300.0, ())], FORM)
    pages = [(item.page, item.box.height) for item in placed]
    assert pages == [(0, 500.0), (0, 10.0), (1, 400.0), (1, 300.0)]


def test_what_is_behind_a_barrier_waits_for_all_floats() -> None:
    line = shapes.Box(10.0, ())
    tall = shapes.Float(shapes.Box(500.0, ()))
    placed = columns.compose([*[line] * 40, tall, columns.Barrier(), line], FORM)
    assert [item.box.height for item in placed][-2:] == [500.0, 10.0]


def test_a_figure_behind_a_heading_lets_its_text_come_first() -> None:
    text = "# Title\n\n## First\n\n:::figure dots\nA caption.\n:::\n\nA paragraph.\n"
    placed = pdf.placed_on_pages(document.parse(text), FORM, {"dots": 0.5})
    first = [item.box.shapes[0] for item in placed[1:]]
    assert [getattr(shape, "text", "") for shape in first] == ["First", "A", ""]


def test_small_print_is_as_roomy_as_the_pages_allow() -> None:
    lines = "\n".join(f"| {number} | `case/{number}` | seconds {number} ms |" for number in range(2, 40))
    rows = f"| mark | place | field |\n|---|---|---|\n{lines}"
    parts = ["# Title", "## First", f":::longtable sources\nNumbers:\n{rows}\n:::"]
    page = columns.Format()
    for height, apart in ((page.height, True), (130.0, False)):
        placed = pdf.placed_on_pages(document.parse("\n\n".join(parts)), page._replace(height=height), {})
        begins = sum(
            shape.style == "bold" and shape.x == 0.0 and shape.text.isdigit()
            for item in placed
            for shape in item.box.shapes
            if isinstance(shape, shapes.Letters)
        )
        assert (begins == 38) == apart


SMALL = """# Title

What it is about.

## First

A paragraph with *stress*, `code_of/a.kind`, $x_i$ and a mark^1^:

- one
- two

:::equation sum
\\sum_i x_i
:::
:::figure dots
A caption.
:::
:::table numbers
A table.
| a | b |
|---|--:|
| x | **1** |
:::
"""


def test_the_same_text_gives_the_same_bytes(tmp_path: Path) -> None:
    def dots(figure: Figure, box: tuple[float, float, float, float]) -> None:
        width, height = figure.get_size_inches()
        figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height)).plot([1, 2])

    made = []
    for name in ("one.pdf", "two.pdf"):
        path = tmp_path / name
        assert pdf.write_pdf(path, document.parse(SMALL), {"dots": (0.5, dots)}, {"Title": "T"}) == 1
        made.append(path.read_bytes())
    assert made[0] == made[1]
    assert b"/Title (T)" in made[0] and b"Date" not in made[0]


def test_markdown_keeps_what_the_document_has() -> None:
    text = markdown.markdown(document.parse(SMALL))
    for part in (
        "$$\n\\sum_i x_i \\qquad (1)\n$$",
        "![Figure 1](figures/paper_dots.png)\n\n**Figure 1.** A caption.",
        "**Table 1.** A table.\n\n| a | b |\n|---|--:|\n| x | **1** |",
        "a mark<sup>1</sup>:\n\n- one\n- two",
    ):
        assert part in text


def test_pictures_are_drawn_from_rows(published: Evidence) -> None:
    for name in graphics.FIGURES.keys() - {"length"}:  # which has no rows yet
        figure = graphics.picture(published, name)
        assert figure.axes
        assert all(min(axes.get_position().size) > 0.1 for axes in figure.axes), name


def test_rows_without_a_sentence_of_their_own_are_noticed_too(few: Evidence, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "language.json").write_text(json.dumps({"rows": []}), "utf-8")
    other = Evidence(tmp_path / "data", tmp_path / "results")
    assert not other.has_result("language")
    assert other.fingerprint() != few.fingerprint()
