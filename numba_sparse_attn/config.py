"""Every ``NSA_*`` environment switch, in one table.

A switch is read when it is used, never at import, so a test or a notebook can change it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .errors import ArgumentError

__all__ = ["SWITCHES", "cache_directory", "default_engine", "thread_count"]

#: name -> (default as the user reads it, meaning)
SWITCHES: dict[str, tuple[str, str]] = {
    "NSA_NUM_THREADS": ("all usable cores", "threads of the CPU engine; results do not depend on it"),
    "NSA_CACHE_DIR": ("the user's cache folder", "where compiled kernels are kept; 'off' keeps none"),
    "NSA_ENGINE": ("auto", "the engine that engine='auto' stands for"),
}


def thread_count() -> int:
    """Number of threads the CPU engine uses."""
    text = os.environ.get("NSA_NUM_THREADS", "").strip()
    if not text:
        if hasattr(os, "sched_getaffinity"):
            return max(1, len(os.sched_getaffinity(0)))
        return max(1, os.cpu_count() or 1)
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentError(
            f"NSA_NUM_THREADS={text!r}",
            "a whole number of at least 1",
            "set it to the number of cores to use",
        )
    return int(text)


def cache_directory() -> Path | None:
    """Folder for compiled kernels, or None where the user has switched the cache off."""
    text = os.environ.get("NSA_CACHE_DIR", "").strip()
    if text.lower() == "off":
        return None
    if text:
        return Path(text).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "numba_sparse_attn"


def default_engine() -> str:
    """The engine that ``engine="auto"`` stands for; ``"auto"`` lets the planner choose."""
    return os.environ.get("NSA_ENGINE", "").strip() or "auto"
