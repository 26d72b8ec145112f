"""Embeddings, vision and training from end to end: quick runs, and what their rows and tables say."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from numba_sparse_attn import patterns
from reports.scenarios import (
    comparison,
    documents,
    embeddings,
    loss_curves,
    summary,
    trained_tables,
    training,
    vision,
)
from reports.scenarios.bert import load_embedder
from reports.scenarios.layers import cross_entropy
from reports.scenarios.runs import Results, Row

from . import tiny_bert

Run = Callable[[Sequence[str]], Path]

RUNS: dict[str, Run] = {"embeddings": embeddings.run, "vision": vision.run, "training": training.run}
FAMILIES = {
    "embeddings": {"dense", "window", "sink_window"},
    "vision": {"dense", "multiscale", "axial"},
    "training": {"dense", "window", "strided"},
}
TIMES = ("seconds", "cpu_seconds", "at_time", "steps_in_time", "curve")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    tiny_bert.write(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten kinds of noisy pictures, bright in one place each."""
    rng = np.random.default_rng(0)
    labels = rng.integers(vision.CLASSES, size=300)
    pixels = rng.integers(6, size=(300, 8, 8))
    for picture, label in zip(pixels, labels, strict=True):
        picture[label // 5 * 4 :, label % 5 : label % 5 + 3] += 9
    lines = np.column_stack([pixels.reshape(300, 64), labels])
    path = tmp_path_factory.mktemp("images") / "some.csv.gz"
    path.write_bytes(gzip.compress("\n".join(",".join(map(str, line)) for line in lines).encode()))
    return path


@pytest.fixture
def arguments(encoder: Path, images: Path) -> dict[str, list[str]]:
    sources = {"embeddings": ["--model", str(encoder)], "vision": ["--images", str(images)], "training": []}
    return {name: ["--quick", *source] for name, source in sources.items()}


def rows_of(path: Path) -> list[Row]:
    return json.loads(path.read_text("utf-8"))["rows"]


def timeless(rows: Sequence[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.parametrize("name", RUNS)
def test_quick_runs_go_through_and_are_not_run_again(
    name: str, arguments: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / f"{name}.json"
    options = [*arguments[name], "--output", str(output)]
    assert RUNS[name](options) == output
    rows = rows_of(output)
    assert rows[0]["family"] == "dense" and len(rows) == 3
    assert {row["family"] for row in rows} == FAMILIES[name]
    text = summary.report_text(tmp_path)
    assert all(f"`{family}`" in text for family in FAMILIES[name]) and "the best is" in text
    _, _, missing = text.partition("## Not run yet")
    assert [other for other in RUNS if f"scenarios.{other}`" in missing] == [o for o in RUNS if o != name]

    # The last row is lost, as if the run had been interrupted: it is the only one that is made.
    content = json.loads(output.read_text("utf-8"))
    content["rows"].pop()
    output.write_text(json.dumps(content), "utf-8")
    made: list[Row] = []
    add = Results.add
    monkeypatch.setattr(Results, "add", lambda self, row: (made.append(row), add(self, row)))
    RUNS[name](options)
    # The same seed is the same model: all but the time is equal.
    assert len(made) == 1 and timeless(rows_of(output)) == timeless(rows)


def test_models_learn_what_pictures_show(images: Path) -> None:
    row = vision._measure(
        vision.load_images(images), 60, 100, {"family": "multiscale", "density": 0.25, "seed": 0}
    )
    assert len(row["hits"]) == 100 and row["hits"].count("1") > 50
    losses = [point["loss"] for point in row["curve"]]
    assert [point["step"] for point in row["curve"]] == [20, 40, 60] and losses[2] < losses[0]
    assert row["pairs"] == 1024 and row["sequence"] == 84


def test_a_language_model_learns_and_is_compared_at_equal_steps_and_time(tmp_path: Path) -> None:
    output = tmp_path / "training.json"
    training.run(["--quick", "--steps", "40", "--families", "window", "--output", str(output)])
    dense, window = rows_of(output)
    for row in (dense, window):
        losses = {point["step"]: point["loss"] for point in row["curve"]}
        # A uniform guess is ln 256 = 5.5.
        assert losses[10] > losses[40] and max(row["at_steps"].values()) < 4.5
        assert row["at_steps"].keys() == row["at_time"].keys() and len(row["at_steps"]) == 2
        layers = {"bytes", "layer_0", "layer_1", "layer_2", "last_norm", "readout"}
        assert all(point["gradient_norms"].keys() == layers for point in row["curve"])
    assert dense["steps_in_time"] == 40 and dense["at_time"] == dense["at_steps"]
    seconds = [point["seconds"] for point in window["curve"]]
    assert seconds == sorted(seconds) and window["steps_in_time"] >= 1


def test_batches_are_the_same_for_all_patterns_of_a_seed() -> None:
    """Two patterns that are the same set give the same run, a different seed another."""
    text = np.frombuffer(documents.training_code()[:50_000], np.uint8).astype(np.int64)

    def losses(pattern: object, seed: int) -> list[float]:
        run = training._Run(training.ByteModel(training._SHAPE), pattern, text, seed)  # type: ignore[arg-type]
        for _ in range(10):
            run.step()
        return [point["loss"] for point in run.points]

    full = losses(patterns.causal(64), 0)
    assert losses(patterns.sliding_window(64, 64, causal=True), 0) == pytest.approx(full, abs=1e-4)
    assert losses(patterns.causal(64), 1) != pytest.approx(full, abs=1e-4)


def test_held_out_modules_are_not_trained_on() -> None:
    text = documents.training_code().decode("utf-8", "replace")
    for document in documents.code(training._Bytes(), 4 * training.LENGTH + 1):
        sample = bytes(document.tokens[:400].astype(np.uint8).tolist()).decode()
        assert sample not in text, document.name


def test_held_out_loss_is_the_mean_over_whole_sequences() -> None:
    text = np.frombuffer(documents.training_code()[:20_000], np.uint8).astype(np.int64)
    run = training._Run(training.ByteModel(training._SHAPE), patterns.causal(64), text, 0)
    (document,) = documents.code(training._Bytes(), 129)[:1]
    parameters = run.model.parameters(0)
    parts = [
        run.model.losses(parameters, document.tokens[None, begin : begin + 65], run.pattern)[0].mean()
        for begin in (0, 64)
    ]
    assert run.held_out([document])[document.name] == pytest.approx(np.mean(parts), abs=1e-4)


def test_pyramids_are_means_of_squares() -> None:
    pixels = np.arange(32.0).reshape(2, 4, 4)
    found = vision.pyramid(pixels, 3)
    assert found.shape == (2, 16 + 4 + 1)
    assert found[0, 16:].tolist() == [2.5, 4.5, 10.5, 12.5, 7.5]
    with pytest.raises(ValueError, match="no level of half as many"):
        vision.pyramid(np.zeros((1, 6, 6)), 3)


def test_images_are_read_and_a_missing_package_says_how_to_get_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = vision.load_images(images)
    assert found.pixels.shape == (300, 8, 8) and found.test == 200
    assert 0.0 <= found.pixels.min() < found.pixels.max() <= 1.0
    other = tmp_path / "other.csv.gz"
    other.write_bytes(gzip.compress(b"1,2,3,4,5,6,7\n"))
    with pytest.raises(ValueError, match="7 numbers a line"):
        vision.load_images(other)
    monkeypatch.setattr(vision, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps scikit-learn"):
        vision.images_path(None)


def test_parts_of_chapters_are_cut_and_framed(encoder: Path) -> None:
    embedder = load_embedder(encoder)
    chapters = documents.language(embedder.tokenizer, embeddings.PARTS * 30)[:3]
    parts = embeddings.Parts.of(embedder, chapters, 32)
    assert parts.sequences.shape == (3 * embeddings.PARTS, 32) and len(parts.names) == 3
    assert set(parts.sequences[:, 0]) == {embedder.tokenizer.first}
    assert set(parts.sequences[:, -1]) == {embedder.tokenizer.last}
    for at, chapter in enumerate(chapters):
        own = parts.sequences[at * embeddings.PARTS : (at + 1) * embeddings.PARTS, 1:-1]
        assert np.array_equal(own.ravel(), chapter.tokens)


def test_what_is_found_first_has_rank_one() -> None:
    count = 2 * embeddings.PARTS
    place = np.arange(count)
    # Nearest is the part that follows, then the one after it, then the one before.
    near = -np.abs(place[None, :] - place[:, None] - 0.75)
    np.fill_diagonal(near, -np.inf)
    assert embeddings.found_next(near).shape == (2, embeddings.PARTS - 1)
    assert (embeddings.found_next(near) == 1.0).all()
    # Nearer to the last part of the first chapter than any of its own are two of the second.
    own = embeddings.found_own(near)
    assert own.shape == (2, embeddings.PARTS)
    assert own[0].tolist() == [1.0] * (embeddings.PARTS - 1) + [1 / 3] and (own[1] == 1.0).all()
    # Turned round, every part that follows comes last.
    assert embeddings.found_next(np.where(np.isinf(near), near, -near))[0, 0] < 0.5
    assert embeddings._agreement(near, near) == pytest.approx(1.0)


def test_dense_rows_agree_with_themselves(encoder: Path, tmp_path: Path) -> None:
    output = tmp_path / "embeddings.json"
    embeddings.run(["--quick", "--model", str(encoder), "--output", str(output)])
    dense, *others = rows_of(output)
    assert len(dense["chapters"]) == 4
    assert all(found["agreement"] == 1.0 for found in dense["chapters"].values())
    assert all(found["agreement"] < 1.0 for row in others for found in row["chapters"].values())


def sample(family: str, seed: int, values: dict[str, float], density: float = 0.25) -> Row:
    fields = {"tokens": 10, "family": family, "density": density, "seed": seed, "pairs": 100 * density}
    return {**fields, "values": values}


def test_seeds_that_not_all_families_have_are_left_out_and_the_others_averaged() -> None:
    values = {f"d{at}": float(at) for at in range(12)}
    rows = [sample("dense", seed, values, 1.0) for seed in (0, 1, 2)]
    better = [{name: value + shift for name, value in values.items()} for shift in (1.0, 2.0)]
    rows += [sample("better", seed, better[seed]) for seed in (0, 1)]
    whole = comparison.whole_seeds(rows)
    assert {row["seed"] for row in whole} == {0, 1} and len(whole) == 4
    flat = comparison.per_document(whole, lambda row: row["values"])
    found = comparison.compare(
        flat, lambda row: row["value"], higher_is_better=True, dense_pairs=comparison.all_pairs
    )
    dense, line = found
    assert line.share == 0.25 and line.to_dense == (1.5, 1.5, 1.5) and dense.share == 1.0
    said = trained_tables.finding(found, higher_is_better=True)
    assert "better than dense attention `better`; worse none; the best is `better`" in said
    assert "better than dense attention none; worse `better`" in trained_tables.finding(
        found, higher_is_better=False
    )


def test_the_figure_has_a_line_a_family_over_steps_and_over_time(tmp_path: Path) -> None:
    def row(family: str, density: float, seed: int, points: int) -> Row:
        curve = [
            {"step": 10 * at, "seconds": at * (1.0 + density), "loss": 5.0 / at + seed}
            for at in range(1, points + 1)
        ]
        return {**sample(family, seed, {}, density), "curve": curve}

    rows = [row("dense", 1.0, seed, 20) for seed in (0, 1)]
    rows += [row("window", 0.25, seed, 30 + seed) for seed in (0, 1)]
    figure = loss_curves.draw_losses([*rows, row("dense", 1.0, 2, 20)])
    steps, time = figure.axes
    assert [text.get_text() for text in time.get_legend().get_texts()] == ["dense", "window, 0.25"]
    dense, window = steps.lines
    # Means of five points, of the seeds that both have: the first is that of steps 10 to 50.
    assert list(dense.get_xdata()[:2]) == pytest.approx([30, 40]) and len(dense.get_xdata()) == 16
    first = np.mean([5.0 / at for at in range(1, 6)]) + 0.5
    assert dense.get_ydata()[0] == pytest.approx(first) and len(window.get_xdata()) == 26
    assert time.lines[0].get_xdata()[-1] == pytest.approx(18 * 2.0)

    (tmp_path / "training.json").write_text(json.dumps({"rows": rows}), "utf-8")
    summary.draw_figure(tmp_path, tmp_path / "some.png")
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")


def test_cross_entropy_of_equal_logits_is_the_logarithm_of_their_number() -> None:
    losses, _ = cross_entropy(np.zeros((2, 256)), np.array([0, 9]))
    assert losses == pytest.approx(np.log(256))
