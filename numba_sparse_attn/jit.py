"""Compiling host kernels and running them on threads.

:func:`kernel` is ``numba.njit`` with the options that every host kernel here shares and with a disk
cache whose key covers the source of the *whole package*. Numba's own ``cache=True`` looks only at
the file that holds the decorated function, so an edit in a helper of another file leaves a stale
binary behind (numba-cuda#748 is the same trap).

:func:`for_each` is the thread pool. Kernels release the GIL and are handed pieces of work by Python
threads instead of by ``prange``: a ``parallel=True`` kernel takes seconds longer to compile, and the
first result in a fresh process matters here.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import threading
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import caching, serialize

from . import config
from .errors import ArgumentError, SparseAttentionError

__all__ = ["compiled_by_user", "for_each", "inlined", "kernel", "reason_of", "source_digest"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Item = TypeVar("_Item")


@functools.cache
def source_digest() -> str:
    """Digest of every Python file of the package: the part of the cache key that Numba lacks."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


class _PackageDigestLocator(caching._CacheLocator):
    """Keeps compiled kernels in the user's cache folder, one sub-folder a state of the package."""

    def __init__(self, py_func: Callable[..., Any], py_file: str, folder: Path) -> None:
        self._py_func = py_func
        self._py_file = py_file
        self._folder = folder

    def get_cache_path(self) -> str:
        return str(self._folder / f"{source_digest()}-numba-{numba.__version__}")

    def get_source_stamp(self) -> str:
        return source_digest()

    def get_disambiguator(self) -> str:
        return hashlib.sha256(self._py_func.__module__.encode()).hexdigest()[:10]

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _PackageDigestLocator | None:
        folder = config.cache_directory()
        return None if folder is None else cls(py_func, py_file, folder)


class _PackageCacheImpl(caching.CompileResultCacheImpl):
    _locator_classes = [_PackageDigestLocator]


class _KernelFiles:
    """One file per compiled signature, named by its key, which is stored in it and compared.

    Numba's own files are numbered through an index file, and two processes that compile at the same
    time can end up with an index that points at the other's machine code.
    """

    def __init__(self, folder: str, stem: str) -> None:
        self._folder = Path(folder)
        self._stem = stem

    def _path(self, key: tuple[Any, ...]) -> Path:
        name = hashlib.sha256("\n".join(map(str, key)).encode()).hexdigest()[:16]
        return self._folder / f"{self._stem}.{name}.nbc"

    def load(self, key: tuple[Any, ...]) -> Any:
        try:
            stored, data = pickle.loads(self._path(key).read_bytes())
        except Exception:  # a missing, unreadable or damaged file: unpickling garbage raises anything
            return None
        return data if stored == key else None

    def save(self, key: tuple[Any, ...], data: Any) -> None:
        path = self._path(key)
        draft = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            draft.write_bytes(serialize.dumps((key, data)))
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


class _PackageCache(caching.FunctionCache):
    """Numba's function cache over :class:`_KernelFiles`; a folder that cannot be written is no error."""

    _impl_class = _PackageCacheImpl

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        self._cache_file = _KernelFiles(self._cache_path, self._impl.filename_base)

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:
            pass


_OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False}


def kernel(function: _Function) -> _Function:
    """Compile `function` on first use, without the GIL, cached on disk."""
    dispatcher = numba.njit(**_OPTIONS)(function)
    if config.cache_directory() is not None:
        dispatcher._cache = _PackageCache(dispatcher.py_func)
    return dispatcher


def inlined(function: _Function) -> _Function:
    """Compile a helper of kernels: LLVM inlines it, and it needs no cache entry of its own."""
    return numba.njit(**_OPTIONS)(function)


#: Lines of a compiler's message that a refusal quotes, and how lines begin that say nothing.
_QUOTED_LINES = 8
_EMPTY_PHRASES = ("Failed in nopython mode", "During:", "[1] During:", "<source")


def reason_of(error: BaseException) -> str:
    """What a compiler says, without its advice on where to report it."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(_EMPTY_PHRASES)]
    return " | ".join(told[:_QUOTED_LINES]) or type(error).__name__


def compiled_by_user(
    function: Callable[..., Any],
    name: str,
    refusal: type[SparseAttentionError] = ArgumentError,
    signature: str | None = None,
    *,
    shown: Callable[..., Any] | None = None,
) -> Any:
    """A user's function as one that kernels call, or a refusal with Numba's reason.

    With a signature it is compiled at once, without it when a kernel is. It is never kept on disk: what it
    closes over is a part of it. `shown` is the function that a refusal names, if it is another one.
    """
    if not callable(function):
        raise refusal(f"{name}={function!r}", "a Python function", "pass a function")
    dispatcher: Any = function if hasattr(function, "py_func") else inlined(function)
    if signature is not None:
        try:
            dispatcher.compile(signature)
        except Exception as error:  # Numba raises its own and others, whatever the stage
            called = getattr(shown or function, "__name__", repr(function))
            raise refusal(
                f"{name} {called!r}, which Numba does not compile: {reason_of(error)}",
                "numbers, NumPy and math functions, and arrays that the function closes over",
                "write it so; https://numba.readthedocs.io lists what is supported",
            ) from error
    return dispatcher


_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_pool_lock = threading.Lock()


def _forget_pool() -> None:
    """In a forked child the parent's threads do not exist: start a new pool there."""
    global _pool, _pool_size, _pool_lock
    _pool, _pool_size, _pool_lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _executor(threads: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _pool_lock:
        if _pool is None or _pool_size < threads:
            _pool = ThreadPoolExecutor(threads, thread_name_prefix="numba-sparse-attn")
            _pool_size = threads
        return _pool


def for_each(function: Callable[[_Item, int], None], items: Iterable[_Item]) -> None:
    """Call ``function(item, worker)`` for every item, several at a time.

    Items are handed out in order, one at a time, to whichever thread is free; ``worker`` numbers
    the thread (0 is the caller), so that a function can keep scratch memory per thread. Which
    thread runs an item must not matter to the result: that is how results stay the same for every
    number of threads.
    """
    work = list(items)
    threads = min(config.thread_count(), len(work))
    if threads <= 1:
        for item in work:
            function(item, 0)
        return
    position = 0
    lock = threading.Lock()

    def drain(worker: int) -> None:
        nonlocal position
        while True:
            with lock:
                mine = position
                position += 1
            if mine >= len(work):
                return
            try:
                function(work[mine], worker)
            except BaseException:
                with lock:
                    position = len(work)
                raise

    pool = _executor(threads - 1)
    helpers: list[Future[None]] = [pool.submit(drain, worker) for worker in range(1, threads)]
    try:
        drain(0)
    finally:
        # A helper that has not started has nothing left to do; waiting for it could take for ever when
        # this call itself runs on the only thread of the pool.
        started = [helper for helper in helpers if not helper.cancel()]
        for helper in started:
            helper.exception()
    for helper in started:
        helper.result()
