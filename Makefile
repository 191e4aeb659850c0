# Everything happens inside the checkout: the virtual environments are .venv, .venv-ministack, .venv-checks and .venv-shipped.
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

PARAMETERS ?= deploy/ecs/parameters.toml

##@ The two that matter

.PHONY: demo
demo: .venv/.local .venv-ministack/.installed ## The whole system on this machine: 1,000 clients, nobody misses a message
	@$(BIN)/python -m local.demo

.PHONY: test
test: .venv/.test .venv-ministack/.installed .local/tools/prometheus ## All tests, about twenty minutes
	@$(BIN)/python -m pytest

##@ Running

.PHONY: local
local: .venv/.local .venv-ministack/.installed ## The embedded stack, to connect to by hand
	@$(BIN)/python -m local

.PHONY: top
top: .venv/.local ## A live view of workers; `make top URLS="10.0.0.1:9090 10.0.0.2:9090"`
	@$(BIN)/python -m gatecast.cli.top $(URLS)

.PHONY: redrive
redrive: .venv/.local ## Send dead letters again; `DRY_RUN=1` only says which. Queues and credentials: the environment's
	@$(BIN)/python -m worker.redrive $(if $(DRY_RUN),--dry-run)

##@ On AWS

.PHONY: deploy
deploy: .venv/.local ## All of Gatecast into an AWS account, as deploy/ecs/parameters.toml says: docs/deploy.md
	@$(BIN)/python -m deploy.ecs deploy $(PARAMETERS)

.PHONY: destroy
destroy: .venv/.local ## And out of it again; asks first
	@$(BIN)/python -m deploy.ecs destroy $(PARAMETERS)

##@ Ill-treating it

.PHONY: chaos
chaos: .venv/.test .venv-ministack/.installed ## Kill, cut, stall and flood at full size, about 50 minutes: docs/failure-modes.md
	@rm -f .local/chaos-full.jsonl
	@status=0; GATECAST_CHAOS=full GATECAST_CHAOS_RESULTS=.local/chaos-full.jsonl \
		$(BIN)/python -m pytest tests/chaos --ignore tests/chaos/test_soak.py --ignore tests/chaos/test_seen.py --timeout 1800 || status=$$?; \
		$(BIN)/python -m tests.chaos.results docs/failure-modes.md .local/chaos-full.jsonl; exit $$status

.PHONY: faults-seen
faults-seen: .venv/.test .venv-ministack/.installed .local/tools/prometheus ## What each fault shows in, about half an hour: docs/operations.md
	@rm -f .local/seen-full.jsonl
	@status=0; GATECAST_CHAOS=full GATECAST_SEEN_RESULTS=.local/seen-full.jsonl \
		$(BIN)/python -m pytest tests/chaos/test_seen.py || status=$$?; \
		$(BIN)/python -m tests.chaos.seen docs/operations.md .local/seen-full.jsonl; exit $$status

.PHONY: soak
soak: .venv/.test .venv-ministack/.installed ## Ten minutes of everything at a low rate: does it grow?
	@rm -f .local/soak.jsonl
	@status=0; GATECAST_SOAK_SECONDS=600 GATECAST_CHAOS_RESULTS=.local/soak.jsonl \
		$(BIN)/python -m pytest tests/chaos/test_soak.py --timeout 1800 || status=$$?; \
		$(BIN)/python -m tests.chaos.results docs/failure-modes.md .local/soak.jsonl; exit $$status

##@ Measuring

.PHONY: bench
bench: bench-setup ## Side-by-side benchmarks, about twenty minutes on a quiet machine: bench/RESULTS.md
	@$(BIN)/python -m bench

.PHONY: bench-quick
bench-quick: bench-setup ## A short version of all of them, about two minutes
	@$(BIN)/python -m bench --quick

.PHONY: bench-setup
bench-setup: .venv/.bench ## Build the benchmarks' other side, and say which tools are missing
	@command -v $${CC:-cc} >/dev/null || { echo "A C compiler is missing: apt-get install gcc make libssl-dev zlib1g-dev"; exit 1; }
	@$(MAKE) --no-print-directory -C bench/sink all certificates
	@$(BIN)/python -m bench --setup

##@ Working on it

.PHONY: setup
setup: .venv/.tools .venv-ministack/.installed ## Install everything into the checkout

.PHONY: lint
lint: .venv/.tools ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: checks
checks: .venv-checks/.installed ## Linters of templates, images and compose
	@.venv-checks/bin/cfn-lint deploy/ecs/*.yaml
	@.venv-checks/bin/checkov --config-file deploy/ecs/.checkov.yaml
	@.venv-checks/bin/hadolint Dockerfile
	@.venv-checks/bin/checkov --framework dockerfile --file Dockerfile --compact --quiet --skip-download
	@.venv-checks/bin/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml docker-compose.ministack.yml
	@.venv-checks/bin/compose-lint check --strict-config --skip-suppressed --fail-on low docker-compose.yml

.PHONY: image-check
image-check: .venv/.test ## Build every image and run it where there is no container engine; needs root
	@deploy/image/check.sh

.PHONY: format
format: .venv/.tools ## Let ruff put things in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: dashboards
dashboards: .venv/.test ## Write the dashboards' JSON anew
	@$(BIN)/python -m deploy.observability.dashboards

.PHONY: lock
lock: .venv/.tools ## Resolve the locks in requirements/ anew (needs uv on the PATH)
	@cd requirements && for name in tools worker routes lambda local otel test bench ministack checks; do \
		uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
			--no-annotate --no-header $$([[ $$name =~ tools|ministack|checks ]] || echo "-c tools.txt") \
			$$name.in -o $$name.txt; \
	done

.PHONY: sbom
sbom: .venv-checks/.installed .venv-shipped/.installed ## What is shipped, with versions: dist/gatecast.cdx.json (CycloneDX)
	@mkdir -p dist
	@.venv-checks/bin/cyclonedx-py environment --output-reproducible \
		-o dist/gatecast.cdx.json .venv-shipped/bin/python

.PHONY: licences
licences: .venv-checks/.installed .venv-shipped/.installed ## Write docs/licences.md anew
	@{ echo "# Licences of what is shipped"; echo; \
		echo "In the images of the worker and of the routes, and by the extra \`otel\`. Written by \`make licences\`."; echo; \
		.venv-checks/bin/pip-licenses --python=.venv-shipped/bin/python --no-version --format=markdown; } > docs/licences.md

.PHONY: audit
audit: .venv-checks/.installed ## Are there known vulnerabilities in what is shipped? Asks the internet
	@.venv-checks/bin/pip-audit --require-hashes --disable-pip $(foreach name,worker lambda otel,-r requirements/$(name).txt)

.PHONY: clean
clean: ## Remove what was installed and built
	@rm -rf .venv .venv-ministack .venv-checks .venv-shipped .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist bench/build bench/sink/build

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

.venv/.bench: requirements/bench.txt .venv/.local | .venv/bin/python
	@echo "Installing what the benchmarks compare with (.venv) …"
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

.venv-checks/.installed: requirements/checks.txt
	@echo "Installing what checks templates and images (.venv-checks) …"
	@[ -x .venv-checks/bin/python ] || $(PYTHON) -m venv .venv-checks
	@.venv-checks/bin/python $(PIP) -r $<
	@touch $@

.venv-shipped/.installed: requirements/worker.txt requirements/lambda.txt requirements/otel.txt | .venv/bin/python
	@echo "Installing what is shipped (.venv-shipped) …"
	@[ -x .venv-shipped/bin/python ] || $(PYTHON) -m venv --without-pip .venv-shipped
	@$(BIN)/python -m pip --python .venv-shipped/bin/python --disable-pip-version-check --quiet install --require-hashes \
		$(foreach lock,$^,-r $(lock))
	@touch $@

# Prometheus' own tools. Where they cannot be had, tests that need them are skipped, but not in CI.
.local/tools/prometheus: deploy/observability/fetch_tools.sh
	@$< || [ -z "$${CI:-}" ]
