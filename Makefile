# Every target starts from nothing but Python 3.11 or newer: the first one makes .venv (about 2 GB).
PYTHON ?= python3
BIN := .venv/bin
# One thread per process: the tests run in several processes, and small tensors gain nothing from more.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint docs clean

demo: .venv/ready
	OMP_NUM_THREADS=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu) $(BIN)/astrozoo run celeste --demo --out demo

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/docs-ready
	$(BIN)/mkdocs build --strict --site-dir build/docs

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first: whatever wheel pip has been configured to find is kept by all that follows.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "astrozoo needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-input -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e ".[dev]"
	touch $@

.venv/docs-ready: .venv/ready
	$(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e ".[docs]"
	touch $@
