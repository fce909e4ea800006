# One door: CI, pre-commit and people call the same targets. `make` alone lists them.

PYTHON ?= python3
# One more package index for torch. Unless it is given, empty included: that of the CPU build where there is no NVIDIA GPU;
# it is looked for when something is installed, once.
ifeq ($(origin TORCH_INDEX_URL),undefined)
TORCH_INDEX_URL = $(eval TORCH_INDEX_URL := $(shell $(PYTHON) .ci/torch_index.py))$(TORCH_INDEX_URL)
endif
# Arguments for the command behind a target: make test ARGS="-k scheduler", make serve ARGS="--port 9000"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))

# Stamps: what was installed, and whether pyproject.toml has changed since.
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

# Client libraries of others, which want older releases of what .venv has: an environment of their own.
CLIENTS_VENV := .venv-clients
CLIENTS_STAMP := $(CLIENTS_VENV)/.installed

# Ray, which the application in deploy/ray runs on, in an environment of its own too.
RAY_VENV := .venv-ray
RAY_STAMP := $(RAY_VENV)/.installed

# What builds the wheel and checks which systems it runs on. 2_28: glibc 2.28 and later, as torch's own wheels.
WHEEL_VENV := .venv-wheel
WHEEL_STAMP := $(WHEEL_VENV)/.installed
PLATFORM := manylinux_2_28_$(shell uname -m)

# Without bytecode each worker and each server that it starts compiles everything anew.
unexport PYTHONDONTWRITEBYTECODE

# So many tests at a time; 0: no other processes, as a debugger wants it.
# As many as there are cores, from 2, for some tests wait more than they compute, to 4, which take 4 GB of memory.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, max(2, os.cpu_count() or 1)))')
# A worker that has no more tests takes half of those that another has: the tests of a file stay together but for a few.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# What leaves out the slow tests, and has the others try fewer examples.
QUICK := -m 'not slow' --hypothesis-profile quick
# What that leaves out: the slow tests, and those that try more examples (hypothesis' plugin marks its own).
LEFT_OUT := -m 'slow or hypothesis or scaled'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12     the interpreter of .venv (Python 3.11 or later; default: python3)"
	@echo "  TORCH_INDEX_URL=URL   one more index for torch; default: without an NVIDIA GPU that of the CPU build,"
	@echo "                        which is gigabytes smaller; TORCH_INDEX_URL= leaves it to pip"
	@echo "  MINUTES=...           how long chaos and soak go on"
	@echo "  WORKERS=...           how many tests run at a time (2 to 4, as many as cores); 0 runs them in one process"
	@echo "  ARGS=...              arguments for the command, e.g. make test ARGS='-k scheduler'"

.PHONY: install
install: $(DEV_STAMP) ## Make .venv with the project (editable) and the development tools

.PHONY: serve
serve: $(RUN_STAMP) ## Install what serving needs, and serve the demo model on port 8000
	@exec $(BIN)/orcinus serve $(ARGS)

.PHONY: clients
clients: $(CLIENTS_STAMP) ## Make .venv-clients with the client libraries that the tests use

.PHONY: ray
ray: $(RAY_STAMP) ## Make .venv-ray with Ray Serve, on which the tests run deploy/ray

.PHONY: unit
unit: $(DEV_STAMP) ## The quick tests that start no server: while you work
	$(PYTEST) $(QUICK) tests/unit $(ARGS)

.PHONY: test
test: $(DEV_STAMP) ## The quick tests: what a change is most likely to break, in a few minutes
	$(PYTEST) $(QUICK) $(ARGS)

.PHONY: test-all
test-all: $(DEV_STAMP) $(CLIENTS_STAMP) $(RAY_STAMP) ## All tests: clients of others, chaos, sanitizers and every family, too
	$(PYTEST) $(ARGS)

.PHONY: test-slow
test-slow: $(DEV_STAMP) $(CLIENTS_STAMP) ## What the quick tests leave out: slow tests, and all examples of the others
	$(PYTEST) $(LEFT_OUT) $(ARGS)

.PHONY: sanitize
sanitize: $(DEV_STAMP) ## The native kernels with strict warnings, and under sanitizers
	$(BIN)/python -m pytest tests/sanitizers $(ARGS)

.PHONY: cover
cover: $(DEV_STAMP) ## What the quick tests cover, in all processes
	$(BIN)/python -m pytest $(QUICK) --cov --cov-report term $(ARGS)

.PHONY: chaos
chaos: $(DEV_STAMP) ## Clients and faults of every kind on a real server, for MINUTES (10): the accounts must be even
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),10) $(ARGS)

.PHONY: soak
soak: $(DEV_STAMP) ## The same for longer, MINUTES (60), to see that memory stays flat
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),60) $(ARGS)

.PHONY: conformance
conformance: $(DEV_STAMP) ## Check the HTTP contract on a real server, and write docs/conformance.md
	$(BIN)/python -m tests.conformance

.PHONY: lint
lint: $(DEV_STAMP) ## Check style and formatting (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: type
type: $(DEV_STAMP) ## Check types (mypy --strict)
	$(BIN)/mypy

.PHONY: format
format: $(DEV_STAMP) ## Format and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(DEV_STAMP) ## Compare the batching strategies
	$(BIN)/orcinus bench strategies $(ARGS)

.PHONY: gpu-check
gpu-check: $(DEV_STAMP) ## On a machine with a GPU: the truth tests, attention, memory, throughput and pacing, on one page
	$(BIN)/python -m bench.gpu_check $(ARGS)

.PHONY: docs
docs: $(DEV_STAMP) ## Regenerate the tables of docs/reference from the declarations, and the PrometheusRule from the rules
	$(BIN)/python -m orcinus.server.reference
	$(BIN)/python .ci/prometheus_rule.py

.PHONY: docs-check
docs-check: $(DEV_STAMP) ## Fail if what `make docs` writes is out of date
	$(BIN)/python -m orcinus.server.reference --check
	$(BIN)/python .ci/prometheus_rule.py --check

.PHONY: wheel
wheel: $(WHEEL_STAMP) ## Build the source distribution and the wheel, native kernels included, into dist/
	rm -rf build dist
	$(WHEEL_VENV)/bin/python -m build --outdir dist .
	@if [ "$$(uname -s)" = Linux ]; then \
		PATH=$(CURDIR)/$(WHEEL_VENV)/bin:$$PATH auditwheel repair --plat $(PLATFORM) --only-plat --wheel-dir dist dist/*-linux_*.whl \
			&& rm dist/*-linux_*.whl; \
	fi

.PHONY: smoke
smoke: wheel $(DEV_STAMP) ## Install the wheel into an empty environment and talk to the server it starts
	$(BIN)/python .ci/smoke.py dist/*.whl $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))

.PHONY: image-check
image-check: ## Build the image without a container engine and run it as an engine would; needs root and debootstrap
	$(PYTHON) .ci/check_image.py $(ARGS)

.PHONY: clean
clean: ## Remove .venv and everything that was built
	rm -rf $(VENV) $(CLIENTS_VENV) $(RAY_VENV) $(WHEEL_VENV) build dist *.egg-info engine/kernels/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEV_STAMP): pyproject.toml
	$(make-venv)
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $(RUN_STAMP) $@

$(RUN_STAMP): pyproject.toml
	$(make-venv)
	$(PIP_INSTALL) --editable .
	@touch $@

$(CLIENTS_STAMP): pyproject.toml
	$(PYTHON) -m venv --upgrade-deps $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip install --group clients
	@touch $@

$(RAY_STAMP): pyproject.toml
	$(PYTHON) -m venv --upgrade-deps $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --group ray
	@touch $@

$(WHEEL_STAMP): pyproject.toml
	$(PYTHON) -m venv --upgrade-deps $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install --group wheel
	@touch $@

define make-venv
@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Orcinus needs Python 3.11 or later, and \
$(PYTHON) is " + sys.version.split()[0] + ": make ... PYTHON=python3.12")'
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
endef
