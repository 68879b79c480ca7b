# The two commands a newcomer needs: `make run` and `make test`. Everything happens in .venv, made from nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt

# Arguments for the program behind a target: `make run ARGS=--exit`, `make test ARGS='tests/unit/cached/contract -x'`.
ARGS ?=

# The tests start some thousand Pythons. Without files of bytecode, as a container's environment may ask for, each daemon
# compiles Holdfast again, for half of its start, and each worker all tests.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: generated proto help run test test-gpu test-slow test-safetensors soak test-verity e2e check lint bench bench-load bench-serve clean

help:
	@echo 'make run        set up .venv and run the demo: a real model, from publishing it to embeddings'
	@echo 'make test       set up .venv and run the tests'
	@echo 'make lint       lint, format, types, layers'
	@echo 'make check      make lint, then the tests'
	@echo 'make bench      fetch over loopback, next to curl, aria2c and an S3 client'
	@echo 'make bench-load   the loader next to other loaders; make bench-serve: the server next to transformers serve'
	@echo 'make test-gpu   the loader'\''s tests on this machine'\''s GPU, with the torch of .venv'
	@echo 'make test-slow  the tests marked slow: soaks and large files'
	@echo 'make test-safetensors  the safetensors package'\''s own tests against this loader, from SAFETENSORS=/path/to/a/checkout'
	@echo 'make soak       hours of a node in fast motion, its daemon watched for leaks: make soak DURATION=2h'
	@echo 'make test-verity  the tests of fs-verity in a virtual machine, whose kernel VERITY_KERNEL names'
	@echo 'make e2e        install, use and remove Holdfast in the cluster of KUBECONFIG, whose nodes have its images;'
	@echo '                evicts from the nodes: refuses where they hold versions, unless E2E_EVICT=yes'
	@echo 'make proto      the modules of CSI'\''s messages, after a change of a .proto file'
	@echo 'make generated  the pages of docs/reference, after a change of an option, an annotation, an exit code or a metric'
	@echo 'make clean      remove .venv and the caches'
	@echo "ARGS passes on: make run ARGS=--exit, make test ARGS='tests/unit/cached/contract -x'"

run: $(VENV)/installed-demo
	@$(BIN)/holdfast demo $(ARGS)

# The tests wait more than they compute: several at once, each file by one worker, which keeps its servers. The order of
# the files is of tests/conftest.py.
WORKERS ?= 6
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m 'not slow and not e2e' -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-gpu: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m gpu tests/unit/server/weights $(ARGS)

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow --timeout 1800 $(ARGS)

# The safetensors package's own tests, with its safe_open, load_file and load_model replaced by this loader's. They come with
# no package: SAFETENSORS is a checkout, or an unpacked source distribution. `ARGS=--own` runs them against the package.
SAFETENSORS ?=
test-safetensors: $(VENV)/installed-dev
	@test -n '$(SAFETENSORS)' || { echo 'expected a checkout of safetensors: make test-safetensors SAFETENSORS=/path' >&2; exit 1; }
	$(BIN)/python -m tests.support.safetensors_suite '$(SAFETENSORS)' $(ARGS)

# A real daemon while versions are published, pulled, pinned, evicted and scrubbed, gates come and go, origins fail, lie and
# restart, disks rot and clients hang. It samples memory, descriptors, threads, metrics, temporary and status files and the
# log's rate; it fails where one of them still grows after the first third, where what is wanted is not there in the end,
# or where SIGTERM does not end the daemon with 0. `ARGS='--seed N'` repeats a run's choices.
DURATION ?= 2h
soak: $(VENV)/installed-dev
	$(BIN)/python -m tests.system.load.soak --duration $(DURATION) $(ARGS)

# The tests of fs-verity in a kernel that has it, on QEMU without acceleration: some three minutes. VERITY_KERNEL is a folder with
# boot/ and lib/modules/ of a kernel package, unpacked (dpkg -x); without it, this machine's own kernels are looked through.
test-verity: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow --timeout 1800 tests/system/verity $(ARGS)

# Not part of `make test`: a person with KUBECONFIG set for other work must not find Holdfast in that cluster. First the tests
# that want a cluster without it. The end-to-end tests evict what no pod uses from every node's root: they look first, and
# refuse where a node holds versions that are not their own, unless E2E_EVICT=yes.
e2e: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/system/kube/test_on_a_cluster.py tests/system/e2e $(ARGS)

# The tests come last: their summary is the last word.
check: lint test

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The modules of CSI's messages, which are committed.
proto: $(VENV)/installed-dev
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. cached/csi/proto/*.proto

# What is made from the code and committed: the pages of docs/reference, Grafana's dashboards.
generated: $(VENV)/installed-dev
	$(BIN)/python -m tools.options_page
	$(BIN)/python -m tools.contract_pages
	$(BIN)/python -m tools.metrics_page
	$(BIN)/python -m tools.dashboards

bench: $(VENV)/installed-dev
	$(BIN)/python -m bench.fetch $(ARGS)

bench-load: $(VENV)/installed-dev
	$(BIN)/python -m bench.load $(ARGS)

bench-serve: $(VENV)/installed-dev
	$(BIN)/python -m bench.serve $(ARGS)

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
