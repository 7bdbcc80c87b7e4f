# One door for people and for CI. `make help` lists the verbs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
TORCH := 2.13.0
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

.PHONY: help setup check test test-all audit demo federation lock sbom clean

help: ## what each verb does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## make .venv with everything that users and developers need (about 2 minutes)

# The lock holds everything but torch, whose build (CPU or CUDA) belongs to the machine: it is pinned by version.
$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make setup needs Python 3.11: no '$(PYTHON)' on PATH (set PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check torch==$(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)
	@echo "ready: $(BIN)/fedscan --help"

check: $(STAMP) ## lint, formatting, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STAMP) ## the tests that fit in 12 minutes on two cores
	$(BIN)/pytest -m "not slow" -n 2 --dist loadscope

test-all: $(STAMP) ## the long tests too, in parts that can be resumed (a part that passed is not run again; RESTART=1 runs all)
	$(BIN)/python tests/run_all.py $(if $(RESTART),--restart)

audit: $(STAMP) ## known vulnerabilities of what is installed, unsafe code of ours
	$(BIN)/python tests/audit.py

demo: $(STAMP) ## three hospitals, one model, 64 synthetic slices, one report (8 minutes on two cores)
	$(BIN)/fedscan demo --out demo

federation: $(STAMP) ## a provisioned federation on this machine: kits, mutual TLS, one private job (3 minutes on two cores)
	$(BIN)/fedscan federation demo --out federation

lock: $(STAMP) ## renew requirements.lock from pyproject.toml
	@echo "torch==$(TORCH)" > $(VENV)/torch.txt # else the newest CUDA build's own packages would come into the lock
	$(BIN)/pip-compile --quiet --extra dev --generate-hashes --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --unsafe-package torch -c $(VENV)/torch.txt -o requirements.lock pyproject.toml

sbom: $(STAMP) ## sbom.json: every installed package, CycloneDX
	$(BIN)/cyclonedx-py environment $(VENV) --of JSON -o sbom.json
	@echo sbom.json

clean: ## remove .venv, demo and caches
	rm -rf $(VENV) demo federation .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .test-all sbom.json
