# Everything happens inside the checkout: the virtual environments are .venv and .venv-ministack.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip --disable-pip-version-check --quiet install --require-hashes

# The demo's size; `make demo CLIENTS=5000 ROOMS=50 MESSAGES=200`, `make demo KEEP=1` leaves it running.
CLIENTS ?= 1000
ROOMS ?= 20
MESSAGES ?= 200
KEEP ?=
export CLIENTS ROOMS MESSAGES KEEP

##@ The two that matter

.PHONY: demo
demo: .venv/.local .venv-ministack/.installed ## The whole system on this machine: 1,000 clients, nobody misses a message
	@$(BIN)/python -m local.demo

.PHONY: test
test: .venv/.test .venv-ministack/.installed ## All tests, about three minutes
	@$(BIN)/python -m pytest

##@ Running

.PHONY: local
local: .venv/.local .venv-ministack/.installed ## The embedded stack, to connect to by hand
	@$(BIN)/python -m local

##@ Working on it

.PHONY: setup
setup: .venv/.tools .venv-ministack/.installed ## Install everything into the checkout

.PHONY: lint
lint: .venv/.tools ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: format
format: .venv/.tools ## Let ruff put things in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: lock
lock: .venv/.tools ## Resolve the locks in requirements/ anew (needs uv on the PATH)
	@cd requirements && for name in tools worker routes local test ministack; do \
		uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
			--no-annotate --no-header $$([[ $$name =~ tools|ministack ]] || echo "-c tools.txt") \
			$$name.in -o $$name.txt; \
	done

.PHONY: clean
clean: ## Remove what was installed and built
	@rm -rf .venv .venv-ministack .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Each level installs what the one before lacks; a lock that changes installs again.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Gatecast needs Python 3.11 or later; try make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv

.venv/.local: requirements/local.txt | .venv/bin/python
	@echo "Installing what runs the embedded stack (.venv) …"
	@$(BIN)/python $(PIP) -r $<
	@touch $@

.venv/.test: requirements/test.txt .venv/.local | .venv/bin/python
	@echo "Installing what runs the tests (.venv) …"
	@$(BIN)/python $(PIP) -r $<
	@touch $@

.venv/.tools: requirements/tools.txt .venv/.test | .venv/bin/python
	@echo "Installing the linters (.venv) …"
	@$(BIN)/python $(PIP) -r $<
	@touch $@

.venv-ministack/.installed: requirements/ministack.txt
	@echo "Installing SQS and DynamoDB for laptops (.venv-ministack) …"
	@[ -x .venv-ministack/bin/python ] || $(PYTHON) -m venv .venv-ministack
	@.venv-ministack/bin/python $(PIP) -r $<
	@touch $@
