"""Kernels without a GPU: their source runs in Numba's simulator, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda", reason="numba.cuda is not installed: pip install numba-cuda")

#: The warp engine, without and with changes of scores and other normalisers, the tile engine on mma.sync,
#: forward and backward and with changes of scores, orders of tokens, and selections by content.
CASES = (
    "simulator_cases.py",
    "change_cases.py",
    "normaliser_simulator_cases.py",
    "tile_simulator_cases.py",
    "tile_gradient_cases.py",
    "tile_change_cases.py",
    "order_simulator_cases.py",
    "selection_cases.py",
)


@pytest.mark.parametrize("cases", CASES)
def test_kernels_in_the_simulator(cases):
    path = Path(__file__).with_name(cases)
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = subprocess.run(
        [*command, str(path)],
        cwd=path.parents[2],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        pytest.fail(f"{run.stdout}\n{run.stderr}", pytrace=False)
