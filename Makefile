# Every target starts from nothing but Python 3.11 or newer: the first one makes .venv (about 2 GB).
PYTHON ?= python3
BIN := .venv/bin
# One thread per process: the tests run in several processes, and small tensors gain nothing from more.
export OMP_NUM_THREADS ?= 1

# ArviZ 1.x needs Python 3.12.
PYTHON312 ?= python3.12
BIN1 := .venv-arviz1/bin

.PHONY: demo test test-arviz1 lint docs clean

demo: .venv/ready
	OMP_NUM_THREADS=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu) $(BIN)/astrozoo run celeste --demo --out demo

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-arviz1: .venv-arviz1/ready
	$(BIN1)/python -m pytest -n 2 --dist loadfile tests/test_types.py tests/test_predictive.py tests/diagnostics

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/docs-ready
	$(BIN)/mkdocs build --strict --site-dir build/docs

clean:
	rm -rf .venv .venv-arviz1 build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first: whatever wheel pip has been configured to find is kept by all that follows.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "astrozoo needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-input -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e ".[dev]"
	touch $@

.venv-arviz1/ready: pyproject.toml constraints.txt
	$(PYTHON312) -m venv .venv-arviz1
	grep -v '^arviz=' constraints.txt > .venv-arviz1/constraints.txt
	$(BIN1)/python -m pip install --quiet --no-input -c .venv-arviz1/constraints.txt torch
	$(BIN1)/python -m pip install --quiet --no-input -c .venv-arviz1/constraints.txt -e . "arviz>=1" pytest pytest-xdist
	touch $@

.venv/docs-ready: .venv/ready
	$(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e ".[docs]"
	touch $@
