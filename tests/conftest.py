"""Settings of every test: Hypothesis profiles, the GPU marker, and what may be skipped."""

from __future__ import annotations

import functools
import os

# Before NumPy is loaded: products in tests are small, and a second BLAS thread would only be in the way of
# the other test processes and of our own threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# The first example of a test compiles kernels: time says nothing about a test here.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("local", max_examples=40, **_COMMON)
settings.register_profile("ci", max_examples=40, derandomize=True, print_blob=True, **_COMMON)
settings.register_profile("thorough", max_examples=1000, **_COMMON)
settings.load_profile("ci" if os.environ.get("CI") else "local")

_NO_DEVICE = "no CUDA device"


@functools.cache
def _has_device() -> bool:
    from numba import cuda

    return bool(cuda.is_available())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is no device, and only there.

    Those that take minutes each come first, so that none of them is left for one worker alone at the end.
    """
    items.sort(key=lambda item: "test_simulator.py" not in item.nodeid)
    for item in items:
        if item.get_closest_marker("gpu") and not _has_device():
            item.add_marker(pytest.mark.skip(reason=_NO_DEVICE))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A skip is for a missing device only: any other one is a failure."""
    report = yield
    # An expected failure is reported as skipped too, but is not one.
    if report.skipped and not hasattr(report, "wasxfail") and _NO_DEVICE not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped for something other than a missing device"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where a device is asked for and none of its tests ran, the run has failed."""
    if session.config.option.markexpr == "gpu" and not _has_device():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
