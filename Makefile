# What a person runs here. Each target makes what it needs first, in ~/.cache/sluice (SLUICE_CACHE moves it).

CACHE := $(or $(SLUICE_CACHE),$(HOME)/.cache/sluice)
PYTHON := $(CACHE)/env/bin/python3
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
export PYTHONPATH := operator:trainer_image:server_image
export OMP_WAIT_POLICY := PASSIVE
export KUBECONFIG := $(CACHE)/cluster/kubeconfig

.DEFAULT_GOAL := help
.PHONY: help demo down status up env lint check test soak bench bench-scale bench-train generate golden images format

help:  ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo:  ## A cluster, a served model that lends its GPU to a fine-tuning job, and the result served
	@python3 -m dev demo

down:  ## Remove the cluster and all that is in it (what was built once stays in the cache)
	@python3 -m dev down

status:  ## Say what is up
	@python3 -m dev status

up: env  ## Bring up the local cluster
	@python3 -m dev up

env:  ## Make the Python environment, kubectl and helm
	@python3 -m dev env
	@python3 -m dev tools

lint: env  ## Format, lint, types, import contracts, generated files: one minute
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check --quiet || { echo "make format"; exit 1; }
	@$(PYTHON) -m mypy
	@$(CACHE)/env/bin/lint-imports --no-cache
	@$(PYTHON) -m sluice_api.crd --check crds charts/sluice/files/crds
	@$(PYTHON) -m sluice_api.docs --check docs

check: lint  ## The same and all unit tests but the slow ones: two minutes
	@$(PYTHON) -m pytest -q -n 2 -m "not slow" tests/unit

test: up  ## Every test: unit, against a real API server, and on a real node; 20 minutes on two idle cores
	@python3 -m dev models
	@mkdir -p $(CACHE)/reports && $(PYTHON) -m pytest -n 3 --durations 0 --durations-min 1000 \
	  --junitxml $(CACHE)/reports/tests.xml tests; \
	  failed=$$?; $(PYTHON) -m tests.slowest $(CACHE)/reports/tests.xml; exit $$failed

soak: env  ## Property tests for an hour (SOAK_OPERATIONS: a million), every fault plan (SOAK_FAULTS: all), 50 loans beside others' pods, the large images, kills of the trainer
	@SLUICE_SOAK_OPERATIONS=$${SOAK_OPERATIONS:-1000000} $(PYTHON) -m pytest -q -p no:cacheprovider --timeout 0 \
	  tests/unit/plan/test_invariants.py tests/unit/plan/test_hostile.py -k "TestLending or hostile_tenant"
	@SLUICE_FAULT_PLANS=$${SOAK_FAULTS:-all} $(PYTHON) -m pytest -q -p no:cacheprovider -n 2 tests/integration/test_faults.py
	@SLUICE_LOANS=$${SOAK_LOANS:-50} $(PYTHON) -m pytest -q -p no:cacheprovider tests/integration/test_no_gpu_stolen.py
	@SLUICE_RESTORES=all $(PYTHON) -m pytest -q -p no:cacheprovider tests/integration/test_restored.py
	@python3 -m dev up && SLUICE_AWAY_SECONDS=240 $(PYTHON) -m pytest -q -p no:cacheprovider tests/e2e/test_12_leading_again.py
	@SLUICE_IMAGES=trainer,server $(PYTHON) -m pytest -q -p no:cacheprovider tests/contract/test_dockerfiles.py
	@SLUICE_KILLS=all SLUICE_SIGTERMS=all $(PYTHON) -m pytest -q -p no:cacheprovider -n 2 --dist loadfile \
	  tests/unit/trainer/test_kills.py tests/unit/trainer/test_sigterm.py

bench: up  ## The benchmarks; results go to docs/benchmarks
	@$(PYTHON) -m tests.bench

bench-scale: up  ## Of these, those of scale: Kueue's own trace of 15,000 jobs, a decision among 10,000, the operator with 10,000
	@$(PYTHON) -m tests.bench trace decision operator

bench-train: env  ## Of these, those of the trainer: against TRL, and the loss alone: 46 minutes; no cluster
	@$(PYTHON) -m tests.bench train loss

generate: env  ## Write what is made from the models: CRDs and reference docs
	@$(PYTHON) -m sluice_api.crd crds charts/sluice/files/crds
	@$(PYTHON) -m sluice_api.docs docs

golden: env  ## Rewrite the golden files; read the difference before you commit it
	@SLUICE_GOLDEN=rewrite $(PYTHON) -m pytest -q tests/unit -k as_reviewed

images:  ## Build the three real images with docker, podman or buildah (BUILD_FLAGS for their options)
	@builder=$$(command -v docker || command -v podman || command -v buildah) \
	  || { echo "no docker, podman or buildah on PATH: install one of them" >&2; exit 1; }; \
	for part in operator:operator trainer:trainer_image server:server_image; do \
	  $$builder build $(BUILD_FLAGS) --file $${part#*:}/Dockerfile --tag sluice-$${part%:*}:$(VERSION) . || exit 1; \
	done

format: env  ## Format the code, and mend what lint can mend by itself
	@$(PYTHON) -m ruff check --fix --quiet || true
	@$(PYTHON) -m ruff format --quiet
