# Two commands matter: `make serve` and `make test`. Both set up .venv by themselves.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
CLIENTS_VENV := .venv-clients
# Programs that tests run: a database, the compose file's checker, shells whose completion is tested, a browser, promtool.
DEBIAN_PACKAGES := postgresql docker-compose zsh fish chromium prometheus
ARGS ?=
# Engine of `make serve`: torch, or tensorrt_llm on a host with an NVIDIA GPU.
ENGINE ?= torch
# Tests wait for processes of their own as much as they compute; a file's tests share what they set up.
TEST_PROCESSES ?= 2
# The server and the tests start many processes, and each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
DATA_DIR := $(or $(MOORING_DATA_DIR),$(HOME)/.local/share/mooring)
SAMPLES := $(DATA_DIR)/samples

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.PHONY: serve
serve: $(STAMPS)/run $(if $(filter tensorrt_llm,$(ENGINE)),$(STAMPS)/tensorrt_llm) ## Set everything up and serve three sample models from one memory budget, with the web UI (flags: ARGS="...", ENGINE=tensorrt_llm)
	@exec $(BIN)/mooring serve --data-dir "$(DATA_DIR)" --engine $(ENGINE) --samples --ui $(ARGS)

# Set up by a make of its own, which does two things at a time: installing the clients keeps one core busy for minutes.
.PHONY: test
test: ## Set everything up and run every check and test
	@$(MAKE) --no-print-directory --silent $(if $(filter -j%,$(MAKEFLAGS)),,--jobs=2) lint $(STAMPS)/debian $(STAMPS)/clients
	@$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations=25 $(ARGS)

.PHONY: test-slow
test-slow: $(STAMPS)/dev $(STAMPS)/debian $(STAMPS)/clients ## Run the tests that `make test` leaves out: fuzzers, benchmarks, variations
	@$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --durations=10 -m slow $(ARGS)

# What a change should pass before it is committed: under a minute once the tools' caches are warm. Lint and types run
# beside each other, each on one core; the unit tests come after them and have both.
.PHONY: check
check: $(STAMPS)/dev ## Formatting, lint, types, import directions and the unit tests: in a minute
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint-style lint-types
	@$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile tests/unit $(ARGS)

# Each reader of strangers' files for ten minutes, unless ARGS say otherwise: make fuzz ARGS="gguf --seconds 60".
.PHONY: fuzz
fuzz: $(STAMPS)/dev ## Read mutated model files for a long time (ARGS="gguf --seconds 60")
	@PYTHONPATH=tests $(BIN)/python tests/fuzz/strangers_files.py $(ARGS)

.PHONY: lint
lint: lint-style lint-types ## Formatting, lint, types and import directions

.PHONY: lint-style
lint-style: $(STAMPS)/dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports

.PHONY: lint-types
lint-types: $(STAMPS)/dev
	@$(BIN)/mypy

.PHONY: format
format: $(STAMPS)/dev ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: samples
samples: $(STAMPS)/run ## Make all sample models now, and serve none
	@$(BIN)/python -m ops.samples --out "$(SAMPLES)"

.PHONY: proto
proto: $(STAMPS)/dev ## Generate the gRPC stubs from proto/
	@$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. proto/mooring/v1/*.proto

.PHONY: lock
lock: $(STAMPS)/dev ## Note versions and hashes of the container images' packages
	@$(BIN)/python deploy/lock.py

.PHONY: docs
docs: $(STAMPS)/dev ## Generate the reference pages that come from the code
	@$(BIN)/python -m mooring.reference > docs/configuration.md

# Of the three sample models under load; minutes, and more where the samples have to be made first.
.PHONY: pictures
pictures: $(STAMPS)/dev $(STAMPS)/debian ## Take the pictures of the web UI in docs/images
	@PYTHONPATH=tests $(BIN)/python tests/pictures/ui_pictures.py $(if $(wildcard $(SAMPLES)/smollm2),--data-dir "$(DATA_DIR)") $(ARGS)

.PHONY: clean
clean: ## Remove the environment and caches (not the data)
	rm -rf $(VENV) $(CLIENTS_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# --- environment ---------------------------------------------------------------------------------------

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Mooring needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq python3-venv; \
	    else echo "Python has no venv here: apt-get install python3-venv" >&2; exit 1; fi; }
	@$(PYTHON) -m venv $(VENV)

# torch first and by itself: on a machine without a GPU no resolver may pull the CUDA build (several GB).
$(STAMPS)/torch: $(VENV)/pyvenv.cfg
	@mkdir -p $(STAMPS)
	@if $(BIN)/python -c 'import torch, sys; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9))' 2>/dev/null; then \
	  echo "torch: already there"; \
	elif command -v nvidia-smi >/dev/null 2>&1; then \
	  $(BIN)/pip install --quiet "torch>=2.9"; \
	else \
	  $(BIN)/pip install --quiet "torch==2.13.0+cpu" 2>/dev/null \
	  || $(BIN)/pip install --quiet "torch==2.13.0+cpu" --index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple \
	  || $(BIN)/pip install --quiet "torch>=2.9"; \
	fi
	@touch $@

$(STAMPS)/run: $(STAMPS)/torch pyproject.toml
	@echo "Installing Mooring into $(VENV) ..."
	@$(BIN)/pip install --quiet -e "$$(command -v nvidia-smi >/dev/null 2>&1 && echo '.[bench,gpu]' || echo '.[bench]')"
	@touch $@

# NVIDIA has the package on an index of its own; its libraries want Open MPI on the host (docs/tensorrt-llm.md).
$(STAMPS)/tensorrt_llm: $(STAMPS)/run pyproject.toml
	@echo "Installing TensorRT-LLM into $(VENV) ..."
	@$(BIN)/pip install --quiet -e ".[tensorrt-llm]" --extra-index-url https://pypi.nvidia.com
	@touch $@

$(STAMPS)/dev: $(STAMPS)/run pyproject.toml
	@echo "Installing what the tests need ..."
	@$(BIN)/pip install --quiet -e ".[dev]"
	@touch $@

# Where we may not install, the tests that need a package say which one.
# npm is Debian's own unless one from elsewhere is here, beside which that could not be installed.
$(STAMPS)/debian: $(VENV)/pyvenv.cfg Makefile
	@mkdir -p $(STAMPS)
	@missing=$$(for package in $(DEBIAN_PACKAGES); do \
	    dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done; \
	    command -v npm >/dev/null || echo npm); \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi; \
	  echo "Installing Debian packages for the tests:" $$missing "..."; \
	  { $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq $$missing; } \
	    > $(STAMPS)/debian.log 2>&1 \
	  || { echo "They could not be installed ($(STAMPS)/debian.log says why): some tests will fail." >&2; exit 0; }; \
	fi; \
	touch $@

# Clients that want other versions than ours of the packages they share with us.
$(STAMPS)/clients: $(VENV)/pyvenv.cfg tests/clients/requirements.txt
	@mkdir -p $(STAMPS)
	@echo "Installing the clients that the tests run into $(CLIENTS_VENV) ..."
	@$(PYTHON) -m venv $(CLIENTS_VENV)
	@$(CLIENTS_VENV)/bin/pip install --quiet -r tests/clients/requirements.txt
	@touch $@
