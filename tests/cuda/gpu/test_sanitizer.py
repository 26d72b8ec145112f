"""compute-sanitizer finds nothing in a small call of every kernel; it comes with the CUDA toolkit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

CASES = Path(__file__).with_name("sanitized.py")


@pytest.mark.parametrize(
    ("tool", "engines"),
    [
        ("memcheck", "all"),
        ("racecheck", "cuda-warp"),
        ("racecheck", "mma.sync"),
        ("racecheck", "selection"),
    ],
)
def test_nothing_is_found(tool, engines):
    """Races are not looked for in Hopper's kernels: the tool does not know what the copy engine orders."""
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    assert program, "compute-sanitizer is not on the path: it is part of the CUDA toolkit"
    # Errors of the driver's interface are not looked for: asking which functions a driver has is one.
    options = ["--tool", tool, "--error-exitcode", "9"]
    if tool == "memcheck":
        options += ["--report-api-errors", "no"]
    run = subprocess.run(
        [program, *options, sys.executable, str(CASES), engines],
        cwd=CASES.parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0 and "done" in run.stdout, f"{run.stdout[:8000]}\n{run.stderr[-2000:]}"
