# Every target sets itself up on a fresh machine with Python 3.11+, pip and venv.
PYTHON ?= python3.11
# One environment for each interpreter, so that `make test PYTHON=python3.13` disturbs no other.
VENV := .venv-$(notdir $(PYTHON))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A test runs some thousand commands: where the environment forbids compiled files, each would compile all of ours anew.
COMPILE = $(BIN)/python -m compileall -q poolserver tests
# Tests wait on facts, not on the processor, so a few more workers than cores is right.
JOBS ?= 4

.PHONY: run test test-library soak lint docs man dist bench bench-page bench-flood bench-parking bench-operations clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

run: $(STAMP) ## serve the built-in echo handler on tcp://127.0.0.1:20000 until Ctrl-C
	@exec $(BIN)/poolserver run poolserver.examples.echo:EchoHandler -b tcp://127.0.0.1:20000

test: $(STAMP) ## everything but the long storms, in about eight minutes on two cores
	$(COMPILE)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not soak"

test-library: $(STAMP) ## the tests that need no clients: what CI runs on every other Python
	$(COMPILE)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not soak" tests/unit tests/contract tests/test_layers.py

soak: $(STAMP) ## the long forms of the storms
	$(COMPILE)
	$(BIN)/python -m pytest -m soak

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Beside the development environment: nothing else needs Sphinx.
DOCS_VENV := .venv-docs-$(notdir $(PYTHON))
DOCS_STAMP := $(DOCS_VENV)/.installed
SPHINX := $(DOCS_VENV)/bin/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env -d docs/_build/doctrees

$(DOCS_STAMP): pyproject.toml
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

docs: $(DOCS_STAMP) ## the documentation, in docs/_build/html; a warning or a dead internal link is an error
	$(SPHINX) -b html docs docs/_build/html

man: $(DOCS_STAMP) ## poolserver.1 and poolserver.toml.5, in docs/_build/man
	$(SPHINX) -b man docs docs/_build/man

dist: man ## the wheel, manual pages within, in dist/
	rm -f dist/poolserver-*.whl
	$(DOCS_VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(DOCS_VENV)/bin/python -m zipfile --list dist/poolserver-*.whl | grep share/man/man1/poolserver.1

# Contestants in Python, and what draws the charts. One that cannot be installed is named in the tables, and is no error.
BENCH_STAMP := $(VENV)/.bench-installed

$(BENCH_STAMP): $(STAMP)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

bench: $(BENCH_STAMP) ## poolserver beside what users could run instead; in about fifteen minutes on two cores
	$(BIN)/python bench/side_by_side.py

bench-page: $(BENCH_STAMP) ## the charts, and the tables of docs/performance.md, from bench/results
	$(BIN)/python bench/charts.py
	$(BIN)/python bench/page.py

bench-flood: $(STAMP) ## what floods do, here and to the stock recipes, and what limits cost
	$(BIN)/python bench/flood.py

bench-parking: $(STAMP) ## what connections that wait cost, and what lanes do meanwhile (needs wrk and slowhttptest)
	$(BIN)/python bench/parking.py

bench-operations: $(STAMP) ## what it costs to watch a running server
	$(BIN)/python bench/operations.py

clean:
	rm -rf .venv-* dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
