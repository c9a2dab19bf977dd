# The two commands a new user needs: `make demo` and `make test`. Both install what they need.

PYTHON ?= python3
# A CPU build of torch; set TORCH=torch for the newest one with whatever accelerator it brings.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo test slow fuzz check bench docs weights reproduce clean

demo: $(VENV)/ready
	$(BIN)/undula demo -o undula-demo

test: $(VENV)/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

slow: $(VENV)/ready-test
	$(BIN)/python -m pytest -m slow

# Damage files by chance and read them, for so many seconds, other cases each day.
FUZZ_SECONDS ?= 600
fuzz: $(VENV)/ready-test
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --start $$(date +%y%m%d0000)

bench: $(VENV)/ready-bench
	@for script in $(filter-out benchmarks/measuring.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(VENV)/ready-docs
	$(BIN)/mkdocs build --strict --site-dir site

# Train the bundled weights again and write their cards: villin alone, and any protein.
weights: $(VENV)/ready
	rm -rf runs
	$(BIN)/python tools/train_bundled.py

# Train every row of both studies, both families until their plateau, and print the tables: days on a CPU.
reproduce: $(VENV)/ready-test
	$(BIN)/python tools/reproduce.py

clean:
	rm -rf build dist site undula-demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "undula needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/ready-test: pyproject.toml $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/ready-bench: pyproject.toml $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

$(VENV)/ready-docs: pyproject.toml $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@
