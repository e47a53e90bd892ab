# make run, make test: the two commands. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
# More than there are cores: much of the suite waits.
WORKERS ?= 4

.PHONY: help setup run test lint format lock wheel bench reliability interop clean

help: ## say what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1	/' | expand -t 20

setup: $(VENV)/.ready ## .venv from the lock file, with .venv/bin/tetrapylon

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tetrapylon needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.13 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

run: setup ## serve the demonstration: all four protocols, on PORT (default 8000)
	exec $(BIN)/tetrapylon demo --port $(PORT)

test: setup ## the tests that need nothing but Python
	$(BIN)/python -m pytest -m "not interop" -n $(WORKERS) --dist loadfile

interop: setup ## the tests against php-fpm, libfcgi, Perl, git, nginx, …; .ci/run installs them
	$(BIN)/python -m pytest -m interop -n 2 --dist loadfile

lint: setup ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/typecheck.py

format: setup ## let ruff set the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lock: ## resolve requirements.lock anew, for Python 3.11 and up
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --group dev \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock

wheel: setup ## build dist/*.whl
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

bench: setup ## ratios to the peers that are installed; BENCH="--write cgi" writes docs/benchmarks.md
	$(BIN)/python benchmarks/run.py $(BENCH)

reliability: setup ## the checks that print their numbers
	$(BIN)/python tests/reliability/run.py $(CHECKS)

clean: ## remove what was built; .venv stays
	rm -rf build dist *.egg-info
