"""The switches: read when used, refused when they make no sense."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from numba_sparse_attn import config
from numba_sparse_attn.errors import ArgumentError


def test_threads_default_to_the_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NSA_NUM_THREADS", raising=False)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert config.thread_count() == usable


def test_threads_are_read_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 3, 17):
        monkeypatch.setenv("NSA_NUM_THREADS", f" {count} ")
        assert config.thread_count() == count


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²"])
def test_threads_that_are_no_count_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSA_NUM_THREADS", text)
    with pytest.raises(ArgumentError, match=r"given: NSA_NUM_THREADS=.*whole number.*what to do"):
        config.thread_count()


@pytest.mark.parametrize("text", ["off", "OFF", " Off "])
def test_cache_can_be_switched_off(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSA_CACHE_DIR", text)
    assert config.cache_directory() is None


def test_cache_folder_is_the_users_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NSA_CACHE_DIR", str(tmp_path))
    assert config.cache_directory() == tmp_path
    monkeypatch.setenv("NSA_CACHE_DIR", "~/kernels")
    assert config.cache_directory() == Path.home() / "kernels"


@pytest.mark.parametrize(
    ("platform", "variable", "tail"),
    [
        ("linux", "XDG_CACHE_HOME", ("numba_sparse_attn",)),
        ("win32", "LOCALAPPDATA", ("numba_sparse_attn",)),
        ("darwin", None, ("Library", "Caches", "numba_sparse_attn")),
    ],
)
def test_cache_folder_follows_the_platform(
    platform: str,
    variable: str | None,
    tail: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("NSA_CACHE_DIR", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    base = Path.home()
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
        base = tmp_path
    assert config.cache_directory() == base.joinpath(*tail)


def test_engine_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NSA_ENGINE", raising=False)
    assert config.default_engine() == "auto"
    monkeypatch.setenv("NSA_ENGINE", "reference")
    assert config.default_engine() == "reference"


def test_the_table_lists_exactly_the_switches_that_are_read() -> None:
    source = Path(config.__file__).read_text("utf-8")
    read = set(re.findall(r"environ\.get\(\"(NSA_\w+)\"", source))
    assert read == set(config.SWITCHES)
