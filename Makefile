# The two commands a newcomer needs: `make run` and `make test`. Everything happens in .venv, made from nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt

# Arguments for the program behind a target: `make run ARGS=--exit`, `make test ARGS='tests/contract -x'`.
ARGS ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test test-slow e2e check lint bench clean

help:
	@echo 'make run        set up .venv and run the demo: a real model, from publishing it to embeddings'
	@echo 'make test       set up .venv and run the tests'
	@echo 'make check      lint, format, types, layers, then the tests'
	@echo 'make bench      fetch over loopback, next to curl, aria2c and an S3 client'
	@echo 'make test-slow  the tests marked slow: soaks and large files'
	@echo 'make e2e        install, use and remove Holdfast in the cluster of KUBECONFIG, whose nodes have its images'
	@echo 'make clean      remove .venv and the caches'
	@echo "ARGS passes on: make run ARGS=--exit, make test ARGS='tests/contract -x'"

run: $(VENV)/installed-demo
	@$(BIN)/holdfast demo $(ARGS)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m 'not slow and not e2e' $(ARGS)

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow --timeout 1800 $(ARGS)

# Not part of `make test`: whoever has KUBECONFIG set for other work must not find Holdfast in that cluster. First the tests
# that want a cluster without it.
e2e: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/manifests/test_on_a_cluster.py tests/e2e $(ARGS)

# The tests come last: their summary is the last word.
check: lint test

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed-dev
	$(BIN)/python -m bench.fetch $(ARGS)

clean:
	rm -rf $(VENV) *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo 'holdfast needs Python 3.11 or newer: no $(PYTHON) here; name one with make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "holdfast needs Python 3.11 or newer: $(PYTHON) is $$($(PYTHON) -V 2>&1); name another with make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'this Python cannot make virtual environments: install its venv package (Debian, Ubuntu: apt-get install python3-venv)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Each stamp says: this extra is installed as pyproject.toml and constraints.txt have it now. torch alone is some 200 MB,
# for CPUs, so the first time takes minutes.
$(VENV)/installed-demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo 'setting up $(VENV) for the demo (the first time downloads some 400 MB, half of it torch)'
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo 'setting up $(VENV) for the tests (the first time downloads some 500 MB, half of it torch)'
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/installed-demo
