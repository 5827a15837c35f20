# Every target sets itself up: a bare Linux x86-64 machine with Python 3.11 or 3.12 and make is enough.
CONFIG ?= tiny
ARGS ?=
PYTEST_ARGS ?=
OUT ?= benchmarks/results

export OMP_NUM_THREADS = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: quickstart test test-long check gpu format clean

quickstart: .venv/.installed  ## the whole path on the built-in world: CONFIG=minute for minute-long clips
	@$(BIN)/sostenuto quickstart --config $(CONFIG) $(ARGS)

test: .venv/.installed-dev  ## every test but the long ones
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long" $(PYTEST_ARGS)

test-long: .venv/.installed-dev  ## drivers, workers, jobs and nodes killed; an hour of video; docs/wan.md from end to end
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m long $(PYTEST_ARGS)

check: .venv/.installed-dev  ## format, lint, types, import direction, spelling
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/test_imports.py
	@$(BIN)/codespell

gpu:  ## on a machine with a GPU, its own Python, torch, triton and pytest: tests of kernels and steps, then benches, into OUT
	@$(PYTHON) benchmarks/gpu.py --out $(OUT)

format: .venv/.installed-dev  ## rewrite in the house's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove the environment; runs are kept
	rm -rf .venv

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found. Install one, or say: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "installing into .venv (once, about two minutes)"
	@$(PYTHON) -m venv .venv
	@$(PIP) $(TORCH)
	@$(PIP) -e '.[curate]'
	@touch $@

.venv/.installed-dev: .venv/.installed
	@$(PIP) -e '.[curate,dev,wan]'
	@touch $@
