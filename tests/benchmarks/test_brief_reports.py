"""The printed report of a setting: of the brief's own ones, of any pattern, of any call."""

from __future__ import annotations

import argparse
import doctest

import pytest

from benchmarks import brief_reports, run, runner

SMALL = {"heads": 2, "kv_heads": 2, "head_dim": 16, "dtype": "float32", "device": "cpu"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(brief_reports.SETTINGS, False, SMALL)
    monkeypatch.setitem(runner.SECONDS, "cpu", 0.001)


@pytest.mark.usefixtures("quick")
def test_any_call_is_reported_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--device", "cpu", "--peer", "none", "--report", "sliding_window(300, window=8)"]) == 0
    text = capsys.readouterr().out
    titles = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert titles[:4] == ["sliding_window", "Configuration", "Sparsity", "Performance"]
    assert titles[4].startswith("Quality")
    for part in ("sliding_window(n=300, window=8)", "2 x 16, float32", "5,028 of 90,000", "forward   cpu"):
        assert part in text
    assert "times that of dense attention; " in text.split("Quality")[1]


@pytest.mark.usefixtures("quick")
def test_heads_with_patterns_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--device",
        "cpu",
        "--peer",
        "none",
        "--report",
        "strided_heads(n=256, stride=16, window=16)",
    ]
    assert run.main(arguments) == 0
    text = capsys.readouterr().out
    for part in ("Sparsity of head 0", "Sparsity of head 1", "2 x 16", "no scenario"):
        assert part in text


def test_a_name_alone_is_a_pattern_in_its_usual_setting() -> None:
    assert brief_reports.named("document_qa") is brief_reports.REPORTS["document_qa"]
    assert brief_reports.named("bigbird").args[0].arguments["n"] == 4096  # type: ignore[attr-defined]
    assert doctest.testmod(brief_reports).failed == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("window(3)", "is no pattern; there are adaptive_window"),
        ("sliding_window(", "neither a name nor a call"),
        ("nsa.full(3)", "is no pattern"),
        ("sliding_window(-3, 2)", "n=-3"),
        ("sliding_window(3)", "window"),
        ("sliding_window(3, open('x'))", "sliding_window(3, open('x')): malformed"),
    ],
)
def test_what_is_no_setting_is_said(text: str, said: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        brief_reports.named(text)
    assert said in str(caught.value)
