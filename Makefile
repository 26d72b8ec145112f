# `make run` and `make test` need Python >= 3.11 and nothing else: they make .venv and install into it.
# The plain pip lines are in README.md.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BENCH ?=

BIN := $(VENV)/bin
# Tests run in $(WORKERS) processes: one BLAS thread each, two threads of our own (one would prove
# nothing about sharing work), kernels cached inside the venv and not in the user's home.
TEST_ENV := OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_NUM_THREADS=1 NSA_NUM_THREADS=2 MPLBACKEND=Agg \
	NSA_CACHE_DIR=$(CURDIR)/$(VENV)/kernels

.DEFAULT_GOAL := help
.PHONY: help run test lint format atlas bench peers report wheel-check clean

help:
	@echo "make run          a two-minute tour: install, measure a few patterns, print a table, draw a figure"
	@echo "make test         install, run every test that needs no GPU"
	@echo "make lint         ruff and mypy"
	@echo "make format       let ruff rewrite the sources"
	@echo "make atlas        draw the cards of patterns and selections, and the format handbook"
	@echo "make bench        all benchmark cases that run here; BENCH='--device gpu --limit 20' passes arguments"
	@echo "make peers        install PyTorch, the benchmark peer that no other command brings"
	@echo "make report       rows -> the technical report, tables, figures, pattern cards, the block in README.md"
	@echo "make wheel-check  build the wheel and try it in an empty venv outside the checkout"
	@echo "make clean        remove .venv, caches and build outputs"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra: a second call installs nothing, an edit of pyproject.toml installs again.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

run: $(VENV)/.installed-plot
	$(BIN)/python benchmarks/run.py --quick

test: $(VENV)/.installed-test
	$(TEST_ENV) $(BIN)/python -m pytest -m "not gpu" -n $(WORKERS) --dist worksteal

lint: $(VENV)/.installed-lint
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.installed-lint
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

atlas: $(VENV)/.installed-plot
	MPLBACKEND=Agg $(BIN)/python reports/make_atlas.py
	MPLBACKEND=Agg $(BIN)/python reports/make_selections.py
	MPLBACKEND=Agg $(BIN)/python reports/make_handbook.py

bench: $(VENV)/.installed-plot
	$(BIN)/python benchmarks/run.py $(BENCH)

peers: $(VENV)/.installed-bench

report: $(VENV)/.installed-plot
	MPLBACKEND=Agg $(BIN)/python reports/make_report.py
	$(BIN)/python -m reports.scenarios.summary
	$(BIN)/python -m reports.scenarios.learned --report
	$(BIN)/python reports/make_atlas.py --cards
	MPLBACKEND=Agg $(BIN)/python -m reports.paper.build

wheel-check:
	PYTHON="$(PYTHON)" bash .ci/wheel_check

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
