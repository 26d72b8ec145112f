"""The benchmarks: `run.py` measures, `cases.py` says what, `peers/` beside whom, `data/` keeps rows."""
