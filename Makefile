# `make demo` and `make test` do all the set-up themselves: a virtual environment in .venv with the
# locked versions of requirements/. The stamps make the second run quick.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
DEMO_ARGS ?=

.PHONY: help demo test chaos lint format lock snapshots bench clean
help:
	@echo "make demo   set up and run the whole path on a simulated web (DEMO_ARGS=... for options)"
	@echo "make test   set up and run every check and test"
	@echo "make chaos  the long forms of the fault tests"
	@echo "make lint | format | snapshots | bench | lock | clean"

# What is missing is said before anything is created.
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "Missing: $(PYTHON). Install Python 3.11 or newer (Debian/Ubuntu: apt-get install python3 python3-venv), or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Too old: $$($(PYTHON) --version 2>&1). dlconsole needs Python 3.11 or newer: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Missing: the venv module of $(PYTHON). Debian/Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version) ..."
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Could not create $(VENV) with $(PYTHON); see above." >&2; exit 1; }

$(VENV)/.run: $(VENV)/bin/python requirements/run.txt pyproject.toml scripts/redis-binary.py
	@echo "Installing the locked dependencies ..."
	@$(PIP) install -r requirements/run.txt || { echo "Could not install the dependencies: is a package index reachable? (pip's own message is above)" >&2; exit 1; }
	@$(PIP) install --no-deps -e . || { echo "Could not install dlconsole itself; pip's own message is above." >&2; exit 1; }
	@$(BIN)/python scripts/redis-binary.py
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.txt
	@echo "Installing the locked tools for tests and checks ..."
	@$(PIP) install -r requirements/dev.txt || { echo "Could not install the tools: is a package index reachable? (pip's own message is above)" >&2; exit 1; }
	@touch $@

$(VENV)/.bench: $(VENV)/.dev requirements/bench.txt
	@echo "Installing what the benchmarks compare with ..."
	@$(PIP) install -r requirements/bench.txt || { echo "Could not install them: is a package index reachable? (pip's own message is above)" >&2; exit 1; }
	@touch $@

demo: $(VENV)/.run
	@$(BIN)/dlconsole demo $(DEMO_ARGS)

# Tests mostly wait, so more of them run at once than there are cores; each process takes the next one of a
# list that begins with the longest. Whatever the environment says, modules are compiled once: tests start
# hundreds of processes.
test: export PYTHONDONTWRITEBYTECODE =
test: lint
	@$(BIN)/python -m pytest -n 8 --dist load --maxschedchunk 1 -m "not chaos"

# The long forms of the fault tests, one after the other: about 15 minutes.
chaos: $(VENV)/.dev
	@$(BIN)/python -m pytest -m chaos --timeout 900 tests/faults

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check -q . || { echo "ruff format: run 'make format'" >&2; exit 1; }
	@$(BIN)/mypy --strict --no-error-summary -p dlconsole
	@out=$$($(BIN)/lint-imports --no-cache 2>&1) || { echo "$$out"; exit 1; }

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .

snapshots: $(VENV)/.dev
	@$(BIN)/python -m pytest tests/console --snapshot-update

bench: $(VENV)/.bench
	@$(BIN)/python bench/feed.py
	@$(BIN)/python bench/fetch.py
	@$(BIN)/python bench/images.py
	@$(BIN)/python bench/queue.py

# Versions for every supported Python in one file each; needs `pip install uv` once.
lock:
	uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header pyproject.toml -o requirements/run.txt
	uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header --all-extras --group dev pyproject.toml -o requirements/dev.txt
	uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header --all-extras --group bench -c requirements/run.txt pyproject.toml -o requirements/bench.txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
