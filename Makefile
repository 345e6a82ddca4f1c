# One word per chore. The first of them creates .venv and installs the tested versions into it.
# `make PYTHON=/path/to/python3.12 quickstart` takes another Python (3.11 or later).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: quickstart test torture cluster-test bench check format clean
.DEFAULT_GOAL := quickstart

quickstart: .venv/.installed
	$(BIN)/recast quickstart --output runs/quickstart

# One torch thread per worker: two that wait for each other on a busy core spin. Bytecode is kept,
# or each of the processes that tests start would compile everything anew.
test: .venv/.installed
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4

# Real processes killed at 100 random moments and gone on with, a disk that fails at every write.
torture: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py --kills 100
	OMP_NUM_THREADS=1 RECAST_TORTURE=1 $(BIN)/pytest --numprocesses auto tests/test_faults.py

# Several processes that make one run: killed, gone on with by fewer or more, told different things.
cluster-test: .venv/.installed
	OMP_NUM_THREADS=1 RECAST_CLUSTER=1 $(BIN)/pytest tests/test_ranks.py tests/test_cluster.py

# Both sides of every ratio, half an hour on two cores; writes benchmarks/RESULTS.md.
bench: .venv/.installed
	$(BIN)/python -m benchmarks

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/typos

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into .venv (once, some minutes) ..."
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
