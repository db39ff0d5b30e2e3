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
# What is locked on its own, and the packages of it: those of tests/kit/projects.py, with which a test compares them.
PROJECTS := crds operator trainer-image/common trainer-image trainer-image/server tests tests/tools/engine
PACKAGES := tunery_api tunery_operator tunery_common tunery_trainer tunery_server
SOURCES := crds operator trainer-image tests
UV_VERSION := 0.13.9
# uv of the machine, else one of its own in the user's cache folder.
UV := $(or $(shell command -v uv),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tunery/uv-$(UV_VERSION)/bin/uv)
CLUSTER_CLI := cd $(TESTS) && $(PYTHON) -m tools.cluster

export PYTHONDONTWRITEBYTECODE := 1
# Threads that wait for each other sleep, as in the trainer (environment.py): tests run side by side.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

$(UV):
	python3 -m venv $(dir $(@D))
	$(@D)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# The stamp changes with the locks, so that a pull is followed by a sync.
STAMP = $(VENV)/.synced-$(shell cat $(PROJECTS:%=%/pyproject.toml) $(PROJECTS:%=%/uv.lock) | sha256sum | cut -c1-12)
$(STAMP): | $(UV)
	@echo "Making tests/.venv (the first time some 5 GB of packages, a few minutes)" >&2
	@cd $(TESTS) && $(UV) sync --frozen --quiet --compile-bytecode
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

# Of tests/*/repository what reads files and takes seconds; the rest are unit tests.
WORDS := hints docs decisions repository imports projects map images signatures

.PHONY: verify
verify: setup ## Lint, types, layers, locks, generated files and what texts promise
	$(RUFF) format --check $(SOURCES)
	$(RUFF) check $(SOURCES)
	$(VENV)/bin/mypy $(PACKAGES:%=-p %)
	$(VENV)/bin/mypy tests/tools/cluster tests/gpu tests/tools/release
	$(VENV)/bin/mypy --config-file .mypy-tests.ini tests
	$(VENV)/bin/lint-imports --no-cache
	$(PYTHON) -m tunery_api.generate --check $(ROOT)
	cd $(TESTS) && $(PYTHON) -m pytest -q $(WORDS:%=unit/repository/test_%.py)
	@for project in $(PROJECTS); do (cd $$project && $(UV) lock --check --quiet) || { echo "$$project/uv.lock is out of date: run 'uv lock' there"; exit 1; }; done

.PHONY: test-unit
test-unit: setup ## Tests without a node: API, operator, trainer, chart (with a real API server and S3 server)
	@cd $(TESTS) && $(PYTHON) -m parts

.PHONY: test-unit-long
test-unit-long: setup ## The longest of them, which `make test` leaves out
	@cd $(TESTS) && $(PYTHON) -m parts --long

.PHONY: coverage
coverage: setup ## The tests without a node once more, with coverage, which must not fall: before a release, an hour
	@cd $(TESTS) && $(VENV)/bin/coverage erase
	@cd $(TESTS) && $(PYTHON) -m parts --coverage
	cd $(TESTS) && $(VENV)/bin/coverage combine --quiet && $(VENV)/bin/coverage report

.PHONY: test-engine
test-engine: setup ## What serving relies on, tested on the stand-in and on vLLM (at first 5 GB of packages)
	@cd $(TESTS)/tools/engine && $(UV) sync --frozen --quiet
	cd $(TESTS) && TUNERY_ENGINE=vllm OMP_NUM_THREADS=1 $(PYTHON) -m pytest server/test_contract*.py

# Some twenty minutes more: run them, and test-unit-long, before an issue that touches them is resolved.
LONG_E2E := e2e/test_kueue.py e2e/test_nodes.py e2e/test_states.py e2e/test_second_chances.py e2e/test_hints.py e2e/test_helm_test.py \
	e2e/test_stopping.py e2e/test_sweep_kills.py e2e/test_methods.py e2e/test_their_cluster.py e2e/test_preferences.py

.PHONY: test-e2e
test-e2e: cluster-up ## End-to-end tests on the local cluster, with the real images
	cd $(TESTS) && $(PYTHON) -m pytest e2e -m "not long" $(LONG_E2E:%=--ignore=%)

.PHONY: test-e2e-long
test-e2e-long: setup ## End-to-end: beside a real Kueue, obstacles, hints, a platform's demands, second chances, helm test, stops, kills, methods, preferences, servers
	@($(CLUSTER_CLI) neighbours) & built=$$!; ($(CLUSTER_CLI) up); wait $$built
	cd $(TESTS) && $(PYTHON) -m pytest $(LONG_E2E) e2e/test_serving.py e2e/test_serving_truth.py e2e/test_batches.py

.PHONY: test-serving
test-serving: cluster-up ## End-to-end tests of serving, on vLLM for CPUs instead of the stand-in of `make test`
	cd $(TESTS) && TUNERY_ENGINE=vllm $(PYTHON) -m pytest e2e/test_serving.py e2e/test_serving_truth.py

.PHONY: test
test: setup ## Verify, unit tests, end-to-end tests; without the long ones: test-unit-long, test-e2e-long
	@echo "make test, 1 of 3: verify, while the cluster's programs are built beside it (minutes)"
	@# A group of its own, so that the compilers end with it where verify fails, or somebody stops.
	@setsid $(SHELL) -c "$(CLUSTER_CLI) binaries" & built=$$!; trap 'kill -- -$$built 2>/dev/null || true' EXIT; $(MAKE) verify; wait $$built
	@echo "make test, 2 of 3: tests without a node (most of the time; each part is printed as it ends), while images are built"
	@# They mostly wait for packages. What keeps them from being built the cluster says once more.
	@told=$$(mktemp); setsid nice -n 19 $(SHELL) -c "$(CLUSTER_CLI) images" >$$told 2>&1 & built=$$!; \
		trap 'kill -- -$$built 2>/dev/null || true; rm -f $$told' EXIT; \
		$(MAKE) test-unit && { wait $$built || { echo "make test: no images were built beside the tests:"; cat $$told; }; }
	@echo "make test, 3 of 3: the local cluster with the images, and end-to-end tests (some ten minutes)"
	@$(MAKE) test-e2e
	@echo "make test: all of it has passed; make cluster-down ends the cluster, make test-e2e-long has the other end-to-end tests"

.PHONY: bench
bench: setup ## Measure what docs/benchmarks.md reports (at first 5 GB of packages, for vLLM)
	@cd $(TESTS)/tools/engine && $(UV) sync --frozen --quiet
	cd $(TESTS) && $(PYTHON) -m bench

.PHONY: kills
kills: setup ## Training runs killed at random instants, behind a bad network and on several devices, to the weights of one left alone
	cd $(TESTS) && $(PYTHON) -m chaos.kills
	cd $(TESTS) && $(PYTHON) -m chaos.kills.together

.PHONY: soak
soak: setup ## Thirty minutes of LoRAJobs coming and going with faults, on KWOK nodes
	cd $(TESTS) && $(PYTHON) -m chaos.soak

GPU_OUT ?= $(ROOT)/.gpu/out
GPU_WHEELS ?= $(ROOT)/.gpu/wheels

.PHONY: gpu
gpu: setup ## What only a GPU can show, into GPU_OUT/gpu.json; GPU_ARGS=--dry in tiny shapes on the CPU
	cd $(TESTS) && $(PYTHON) -m gpu --out $(GPU_OUT) $(GPU_ARGS)

.PHONY: gpu-wheels
gpu-wheels: ## Collect what a bare GPU machine lacks, for python3 -m gpu --wheels
	cd $(TESTS) && python3 -m gpu.carried $(GPU_WHEELS) $(GPU_WHEELS_ARGS)

.PHONY: demo
demo: setup ## From nothing to a fine-tuned adapter in S3, on the local cluster or CLUSTER=existing
	cd $(TESTS) && $(PYTHON) -m tools.demo

.PHONY: demo-serving
demo-serving: setup ## The demo's adapter and a second one, served side by side by vLLM on the CPU (an image of 5 GB)
	cd $(TESTS) && $(PYTHON) -m tools.demo.serving

TRIALS ?= 6

.PHONY: demo-sweep
demo-sweep: setup ## LoRAJobs search for settings, the guide's three first, and the best is published; TRIALS=6
	cd $(TESTS) && $(PYTHON) -m tools.demo.sweep --trials $(TRIALS)

.PHONY: cluster-up
cluster-up: setup ## Start the local Kubernetes, S3 server and registry; build and push the images
	@$(CLUSTER_CLI) up

.PHONY: cluster-down
cluster-down: setup ## Stop the local cluster and remove its state
	@$(CLUSTER_CLI) down

.PHONY: cluster-env
cluster-env: setup ## Print exports for the running cluster: eval "$(make -s cluster-env)"
	@$(CLUSTER_CLI) env

.PHONY: images
images: setup ## Build the images of operator, trainer and server
	@$(CLUSTER_CLI) images

.PHONY: engine-image
engine-image: setup ## Build the image of vLLM for CPUs, 5 GB, and push it to the local cluster's registry
	@$(CLUSTER_CLI) engine vllm

.PHONY: push
push: setup ## Build the images and push them: make push REGISTRY=registry.example.com/tunery
	@test -n "$(REGISTRY)" || { echo "say where to: make push REGISTRY=registry.example.com/tunery" >&2; exit 2; }
	@$(CLUSTER_CLI) push "$(REGISTRY)"

RELEASE_CHECK ?= $(MAKE) generate && $(MAKE) verify

.PHONY: release
release: | $(UV) ## Commit and tag a release, push nothing: make release VERSION=0.2.0
	@test -n "$(VERSION)" || { echo "say which: make release VERSION=0.2.0" >&2; exit 2; }
	@cd $(TESTS) && UV="$(UV)" python3 -m tools.release "$(VERSION)" --check '$(RELEASE_CHECK)'
