# The commands of this house. `make run` and `make test` need Python 3.11 or newer, make and a package index; all
# else is installed into .venv from requirements.lock, where every file is pinned by its hash.
#
#   make PYTHON=python3.13 run      picks the Python that .venv is made with
#   make ARGS="-k channel -x" test  passes more arguments to pytest

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Only `make lock` needs it.
UV     ?= uv
ARGS   ?=

MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help
.PHONY: help run setup test slow swarm catch attacks check format bench gossipy lock clean

help:
	@echo 'make run      set up, then five daemons on this machine learn together (p2pnode demo)'
	@echo 'make test     set up, then the test suite; ARGS="-k name" selects'
	@echo 'make setup    only make $(VENV) from requirements.lock'
	@echo 'make check    format, lint, types, import layers'
	@echo 'make format   let ruff format and repair what it can'
	@echo 'make slow     the tests that are too long for make test'
	@echo 'make swarm    an hour of simulated networks with faults; SEEDS=0:10000 selects'
	@echo 'make catch    plants faults, lets the swarm search them, writes docs/catch-table.md'
	@echo 'make attacks  what liars do to a fleet; writes the table of docs/simulation.md'
	@echo 'make bench    benchmark table, and build/bench.json; ARGS=--brief only tries each benchmark'
	@echo 'make gossipy  installs gossipy and PyTorch into build/, so that make bench measures it on this machine, too'
	@echo 'make lock     resolve the dependencies anew (needs uv)'
	@echo 'make clean    remove $(VENV), build/ and caches'

run: setup
	@$(BIN)/p2pnode demo

test: setup
	@$(BIN)/python -m pytest -m 'not slow' $(ARGS)

slow: setup
	@$(BIN)/python -m pytest -m slow $(ARGS)

# A seed that fails prints the command that repeats it; p2psim shrink makes it smaller.
SEEDS ?= 0:10000
swarm: setup
	@$(BIN)/p2psim swarm --seeds $(SEEDS) --minutes 60 --jobs $$($(BIN)/python -c 'import os; print(os.cpu_count())') $(ARGS)

catch: setup
	@$(BIN)/python -m tests.catch $(ARGS)

attacks: setup
	@$(BIN)/python -m tests.attacks $(ARGS)

# All four run although one fails, so that one look shows everything; the sum of their failures is the result.
check: setup
	@failed=''; \
	$(BIN)/ruff format --check --quiet . || failed="$$failed format (make format repairs it)"; \
	$(BIN)/ruff check --quiet . || failed="$$failed lint"; \
	$(BIN)/mypy || failed="$$failed types"; \
	$(BIN)/python -m pytest tests/test_layers.py || failed="$$failed layers"; \
	if [ -n "$$failed" ]; then echo "make check: failed:$$failed" >&2; exit 1; fi

format: setup
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: setup
	@$(BIN)/python -m tests.bench $(ARGS)

# The reference of the simulators. Its package does not name all that it imports; torch is a big download.
gossipy:
	@$(PYTHON) -m venv build/gossipy
	@build/gossipy/bin/python -m pip install -qq --disable-pip-version-check torch==2.13.0
	@build/gossipy/bin/python -m pip install -qq --disable-pip-version-check gossipy-dfl==0.0.1 scipy pyparsing

setup: $(VENV)/.stamp

# The stamp is the last thing written: a set-up that was interrupted is begun anew.
$(VENV)/.stamp: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'p2pnode needs Python 3.11 or newer; "$(PYTHON)" is' \
	    "$$($(PYTHON) --version 2>&1 || true). Name another one: make PYTHON=python3.13 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { \
	  echo '"$(PYTHON)" cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv' >&2; \
	  exit 1; }
	@echo 'Setting up $(VENV) from requirements.lock; about a minute, once.'
	@rm -f $@
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# How the locks are made. `--universal` writes one file for every Python from 3.11 on and every platform, with
# markers; no file names an index. deploy/ holds what the container image needs: the same versions, without the
# development tools, and the build back end alone. Commit all three together.
lock:
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  pyproject.toml --group dev -o requirements.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  pyproject.toml -c requirements.lock -o deploy/requirements.lock
	echo hatchling | $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  - -c requirements.lock -o deploy/build.lock

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find crypto gossip p2pnode simulation tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
