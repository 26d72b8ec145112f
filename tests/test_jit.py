"""Compiled kernels: cached on disk, never stale, never an error; and the thread pool."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from numba_sparse_attn import jit

PACKAGE = Path(jit.__file__).parent

KERNEL = """
from .jit import kernel
from .probe_helper import step

@kernel
def probe(x):
    return step(x)
"""
HELPER = """
from .jit import inlined

@inlined
def step(x):
    return x + {increment}
"""
RUN = """
from numba_sparse_attn.probe import probe
answer = probe(1)
print(answer, sum(probe.stats.cache_hits.values()), sum(probe.stats.cache_misses.values()))
"""


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """A package with one kernel and a helper in another file, around the real jit, config and errors."""
    copy = tmp_path / "site" / "numba_sparse_attn"
    copy.mkdir(parents=True)
    for name in ("jit.py", "config.py", "errors.py"):
        shutil.copy(PACKAGE / name, copy / name)
    (copy / "__init__.py").write_text("", "utf-8")
    (copy / "probe.py").write_text(KERNEL, "utf-8")
    (copy / "probe_helper.py").write_text(HELPER.format(increment=1), "utf-8")
    return copy


def run_probe(package: Path, cache: str) -> tuple[int, int, int]:
    """(answer, cache hits, cache misses) of a fresh process."""
    environment = {**os.environ, "NSA_CACHE_DIR": cache, "PYTHONPATH": str(package.parent)}
    run = subprocess.run(
        [sys.executable, "-c", RUN],
        env=environment,
        cwd=package.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    answer, hits, misses = map(int, run.stdout.split())
    return answer, hits, misses


def test_a_second_process_compiles_nothing(copied_package: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert run_probe(copied_package, cache) == (2, 0, 1)
    assert run_probe(copied_package, cache) == (2, 1, 0)


def test_an_edited_helper_in_another_file_is_seen(copied_package: Path, tmp_path: Path) -> None:
    """Bug 18 of the field: a cached kernel stays stale after a helper was edited."""
    cache = str(tmp_path / "cache")
    assert run_probe(copied_package, cache)[0] == 2
    (copied_package / "probe_helper.py").write_text(HELPER.format(increment=5), "utf-8")
    assert run_probe(copied_package, cache) == (6, 0, 1)
    (copied_package / "probe_helper.py").write_text(HELPER.format(increment=1), "utf-8")
    assert run_probe(copied_package, cache) == (2, 1, 0), "going back finds the old kernel again"


def test_a_cache_that_cannot_be_written_costs_a_compilation(copied_package: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way", "utf-8")
    assert run_probe(copied_package, str(blocker / "cache"))[0] == 2


@pytest.mark.parametrize("damage", [b"", b"\x80garbage"], ids=["emptied", "overwritten"])
def test_damaged_cache_files_cost_a_compilation(damage: bytes, copied_package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run_probe(copied_package, str(cache))
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(damage)
    assert run_probe(copied_package, str(cache))[0] == 2


def test_cache_off_writes_nothing(copied_package: Path) -> None:
    assert run_probe(copied_package, "off")[0] == 2
    assert not list(copied_package.parent.rglob("*.nbi"))


def test_the_digest_covers_every_source_file() -> None:
    """Same sources, same digest in another process; the value itself is free to change."""
    script = "from numba_sparse_attn import jit; print(jit.source_digest())"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == jit.source_digest()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_every_item_is_run_once(threads: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSA_NUM_THREADS", str(threads))
    seen: list[tuple[int, int]] = []
    jit.for_each(lambda item, worker: seen.append((item, worker)), range(count))
    assert sorted(item for item, _ in seen) == list(range(count))
    assert all(0 <= worker < threads for _, worker in seen)


def test_workers_do_not_share_a_number_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch memory is kept per worker number, so one number must mean one thread at a time."""
    monkeypatch.setenv("NSA_NUM_THREADS", "4")
    owners: dict[int, set[int]] = {}
    lock = threading.Lock()

    def note(item: int, worker: int) -> None:
        with lock:
            owners.setdefault(worker, set()).add(threading.get_ident())

    jit.for_each(note, range(200))
    assert all(len(threads) == 1 for threads in owners.values())
    assert owners.get(0, {threading.get_ident()}) == {threading.get_ident()}, "0 is the caller"


def test_an_exception_reaches_the_caller_and_ends_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSA_NUM_THREADS", "3")
    started: list[int] = []

    def fail(item: int, worker: int) -> None:
        started.append(item)
        raise KeyError(item)

    with pytest.raises(KeyError):
        jit.for_each(fail, range(1000))
    assert len(started) <= 3
    done: list[int] = []
    jit.for_each(lambda item, worker: done.append(item), range(8))
    assert sorted(done) == list(range(8)), "the pool works on after an exception"


def test_calls_from_several_threads_and_from_inside_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither two callers at once nor a call inside a call may wait for a thread that never comes."""
    monkeypatch.setenv("NSA_NUM_THREADS", "2")
    totals: list[int] = []

    def outer(item: int, worker: int) -> None:
        inner: list[int] = []
        jit.for_each(lambda value, _: inner.append(value), range(10))
        totals.append(sum(inner))

    callers = [threading.Thread(target=jit.for_each, args=(outer, range(5)), daemon=True) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=30)
        assert not caller.is_alive(), "deadlock"
    assert totals == [45] * 15


if hasattr(os, "fork"):

    def test_a_forked_child_starts_its_own_pool() -> None:
        script = (
            "import os, warnings; warnings.simplefilter('ignore')\n"
            "from numba_sparse_attn import jit\n"
            "jit.for_each(lambda item, worker: None, range(8))\n"
            "child = os.fork()\n"
            "if not child:\n"
            "    done = []\n"
            "    jit.for_each(lambda item, worker: done.append(item), range(8))\n"
            "    os._exit(0 if sorted(done) == list(range(8)) else 1)\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
        )
        run = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "NSA_NUM_THREADS": "2"},
            cwd=PACKAGE.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert run.stdout.strip() == "0"
