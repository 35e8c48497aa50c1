# Nothing but Python 3.11+ and make is needed: each target makes .venv and installs what it uses.
#
#   make demo PYTHON=python3.12        another interpreter
#   make demo PIP_ARGS="..."           options for every `pip install`, e.g. your own --index-url
#
# On Linux x86-64 the default build of torch carries CUDA, several gigabytes. Where you do not need
# it, name PyTorch's index of CPU builds (its address is on pytorch.org under "Start locally"):
#
#   make demo PIP_ARGS="--extra-index-url <address>"

PYTHON ?= python3
PIP_ARGS ?=
# The wheel test installs into an environment of its own, with the same options.
export PIP_ARGS

VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/demo.stamp
DEV := $(VENV)/dev.stamp

.DEFAULT_GOAL := help
.NOTPARALLEL: # one pip at a time in .venv
.PHONY: help demo train test test-full lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO) ## export the shipped tiny model, chat with it, measure it (TRAIN=1: train it first)
	@$(BIN)/python samples/demo.py $(if $(filter 1 yes true,$(TRAIN)),--train)

train: $(DEMO) ## train the tiny model from scratch into runs/tiny
	@$(BIN)/laco train --recipe tiny --out runs/tiny

test: $(DEV) ## the default tests
	@$(BIN)/pytest -n 2 --dist loadgroup

test-full: $(DEV) ## every test that needs no GPU (takes minutes longer)
	@$(BIN)/pytest -m "not gpu"

lint: $(DEV) ## ruff, mypy and the one-way imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

clean: ## remove .venv, built files and caches; keeps runs/
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find laco_deploy export runtimes samples tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "laco-deploy needs Python 3.11 or newer; '$(PYTHON)' is missing or older." >&2; \
	  echo "Install one and name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(DEMO): EXTRAS := export,onnxruntime,openvino,openvino-export,report,train
$(DEV): EXTRAS := dev
$(VENV)/%.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing laco-deploy[$(EXTRAS)] into $(VENV): a minute or two, once ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) \
	  --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@
