# Every target has one line of help behind `##`; `make` and `make help` list them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

ROOT   := $(CURDIR)
TESTS  := $(ROOT)/tests
VENV   := $(TESTS)/.venv
PYTHON := $(VENV)/bin/python
RUFF   := $(VENV)/bin/ruff
# Each has a lock of its own. PROJECTS are those of tests/kit/projects.py, which a test compares.
PROJECTS := crds crds/client operator trainer-image/common trainer-image trainer-image/server tests tests/tools/engine
SOURCES := crds operator trainer-image tests
UV_VERSION := 0.13.9
# uv of the machine, else one of its own in the user's cache folder.
UV := $(or $(shell command -v uv),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tunery/uv-$(UV_VERSION)/bin/uv)
CLUSTER := cd $(TESTS) && $(PYTHON) -m tools.cluster
# One worker more than cores: some tests wait for other processes. Each worker computes with one thread.
WORKERS ?= $(shell expr $$(nproc) + 1)
PYTEST := cd $(TESTS) && OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Whether Go is there, and room on the disk for what a target writes.
CHECK := cd $(TESTS) && python3 -m tools.cluster.binaries
EXISTING := $(filter existing,$(CLUSTER))
# Go's compilers run beside what follows, and end with the recipe.
BUILD_GO := setsid $(SHELL) -c "cd $(TESTS) && exec python3 -m tools.cluster.binaries" & built=$$!; \
	trap 'kill -- -$$built 2>/dev/null || true' EXIT

# A recipe line that names MAKE itself would run with `make -n`, too.
SETUP := $(MAKE) setup
VERIFY := $(MAKE) verify

# Threads that wait for each other sleep, as in the trainer (environment.py): tests run side by side.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

$(UV):
	@python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed, and python3 is $$(python3 --version)" >&2; exit 1; }
	@python3 -m venv $(dir $(@D)) && $(@D)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# The stamp changes with the locks, so that a pull is followed by a sync.
STAMP = $(VENV)/.synced-$(shell cat $(PROJECTS:%=%/pyproject.toml) $(PROJECTS:%=%/uv.lock) | sha256sum | cut -c1-12)
$(STAMP): | $(UV)
	@echo "Making tests/.venv (5 GB of packages the first time, about a minute)" >&2
	@cd $(TESTS) && $(UV) sync --frozen --quiet
	@# Write the bytecode of what tests import; that of all packages takes 40 CPU seconds more.
	@cd $(TESTS) && TUNERY_TESTS_FOLDER=$(VENV) $(PYTHON) -m kit.trainer_imports
	@rm -f $(VENV)/.synced-*; touch $@

.PHONY: setup
setup: $(STAMP) ## Make the developers' environment, tests/.venv

.PHONY: generate
generate: setup ## Write the CRDs and docs/api.md from the sources
	@$(PYTHON) -m tunery_api.generate $(ROOT)

.PHONY: format
format: setup ## Format the code
	@$(RUFF) check --fix-only --quiet $(SOURCES)
	@$(RUFF) format $(SOURCES)

.PHONY: verify
verify: setup ## Check format, lint, types, layers, prose, locks and generated files
	$(RUFF) format --check --quiet $(SOURCES)
	$(RUFF) check --quiet $(SOURCES)
	$(VENV)/bin/mypy $(addsuffix /src,$(filter-out tests%,$(PROJECTS))) tests
	$(VENV)/bin/lint-imports --no-logo --no-cache > $(VENV)/.imports || { cat $(VENV)/.imports; exit 1; }
	$(PYTHON) -m tunery_api.generate --check $(ROOT)
	cd $(TESTS) && $(PYTHON) -m tools.prose
	@for project in $(PROJECTS); do (cd $$project && $(UV) lock --check --quiet) || { echo "$$project/uv.lock is out of date: run 'uv lock' there"; exit 1; }; done

.PHONY: try
try: ## Fine-tune a small model on this machine, without a cluster
	@cd $(TESTS) && UV="$(UV)" python3 -m tools.demo.local

.PHONY: demo
demo: ## The same job on a local Kubernetes with S3 (CLUSTER=existing takes yours)
	@$(if $(EXISTING),,($(CHECK) demo); $(BUILD_GO);) $(SETUP); cd $(TESTS) && $(PYTHON) -m tools.demo

.PHONY: demo-serving
demo-serving: ## Serve the demo's adapter and a second one with vLLM on the CPU
	@$(if $(EXISTING),,($(CHECK) demo-serving);) $(SETUP); cd $(TESTS) && $(PYTHON) -m tools.demo.serving

TRIALS ?= 6

.PHONY: demo-sweep
demo-sweep: setup ## Search for settings with LoRAJobs and publish the best adapter (TRIALS=6)
	@cd $(TESTS) && $(PYTHON) -m tools.demo.sweep --trials $(TRIALS)

.PHONY: test
test: ## Verify and run the fast tests, without a node and without root
	@$(CHECK) test
	@$(BUILD_GO); $(VERIFY); \
	if kill -0 $$built 2>/dev/null; then echo "Waiting until Kubernetes and Helm are built (minutes the first time)"; fi; \
	wait $$built; echo "Running the fast tests: about 8 minutes on two cores"; \
	$(PYTEST) -W ignore $(PARALLEL) -m "not slow" unit integration

.PHONY: test-all
test-all: test cluster-up ## Run every test: slow, end-to-end and chaos in small, too (root, hours)
	$(PYTEST) $(PARALLEL) -m slow unit integration
	$(PYTEST) e2e
	cd $(TESTS) && $(PYTHON) -m chaos.kills --kills 6 --terms 2
	cd $(TESTS) && $(PYTHON) -m chaos.soak --minutes 5 --jobs 200

.PHONY: test-serving
test-serving: cluster-up ## Run the tests of serving on vLLM in place of the stand-in (5 GB of packages)
	@cd $(TESTS)/tools/engine && $(UV) sync --frozen --quiet
	TUNERY_ENGINE=vllm; export TUNERY_ENGINE; $(PYTEST) integration/server/engine e2e/test_serving.py e2e/test_serving_truth.py

.PHONY: bench
bench: setup ## Measure what docs/benchmarks.md reports (5 GB of packages for vLLM)
	@cd $(TESTS)/tools/engine && $(UV) sync --frozen --quiet
	cd $(TESTS) && $(PYTHON) -m bench

.PHONY: chaos
chaos: setup ## Kill training runs at random instants; run the operator for half an hour with faults
	cd $(TESTS) && $(PYTHON) -m chaos.kills
	cd $(TESTS) && $(PYTHON) -m chaos.kills.together
	cd $(TESTS) && $(PYTHON) -m chaos.soak

GPU_OUT ?= $(ROOT)/.gpu/out

.PHONY: gpu
gpu: setup ## Check on this machine's GPU what only a GPU can show (GPU_ARGS=--dry without one)
	cd $(TESTS) && $(PYTHON) -m gpu --out $(GPU_OUT) $(GPU_ARGS)

.PHONY: cluster-up
cluster-up: setup ## Start the local Kubernetes, S3 server and registry, and push the images (root)
	@$(CLUSTER) up

.PHONY: cluster-down
cluster-down: setup ## Stop the local cluster and remove its state
	@$(CLUSTER) down

.PHONY: cluster-env
cluster-env: setup ## Print exports for the running cluster: eval "$(make -s cluster-env)"
	@$(CLUSTER) env

.PHONY: push
push: setup ## Push the images and write images.yaml: make push REGISTRY=registry.example.com/tunery
	@test -n "$(REGISTRY)" || { echo "REGISTRY is missing: make push REGISTRY=registry.example.com/tunery" >&2; exit 2; }
	@$(CLUSTER) push "$(REGISTRY)"

RELEASE_CHECK ?= $(MAKE) generate && $(MAKE) verify

.PHONY: release
release: | $(UV) ## Commit and tag a release, push nothing: make release VERSION=0.2.0
	@test -n "$(VERSION)" || { echo "VERSION is missing: make release VERSION=0.2.0" >&2; exit 2; }
	@cd $(TESTS) && UV="$(UV)" python3 -m tools.release "$(VERSION)" --check '$(RELEASE_CHECK)'
