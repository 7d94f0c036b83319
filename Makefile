# DeepCV: `make help` lists the commands. Everything is installed into .venv from requirements.lock.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run ui deploy test check acceptance lock schema clean

PYTHON ?= $(firstword $(foreach v,python3.12 python3.11 python3,$(if $(shell $(v) -c 'import sys; print(sys.version_info[:2] in ((3, 11), (3, 12)) or "")' 2>/dev/null),$(v))))
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := true
export GX_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1|\2/' | while IFS='|' read -r name text; do printf '  make %-11s %s\n' "$$name" "$$text"; done

# A virtual environment and what is installed in it hold its path: after a move it is made anew.
MOVED := $(shell [ ! -e .venv/bin/deepcv ] || [ "$$(dirname "$$(dirname "$$(grep -m1 -o '/.*/bin/python' .venv/bin/deepcv)")")" -ef .venv ] || echo --clear)
ifneq ($(MOVED),)
.PHONY: .venv/.installed
endif

setup: .venv/.installed  ## install into .venv (run and test do it themselves)

.venv/.installed: requirements.lock pyproject.toml
	@command -v git >/dev/null || { echo "git is missing: apt-get install git"; exit 1; }
	@test -n "$(PYTHON)" || ! command -v python3 >/dev/null || { echo "Python 3.11 or 3.12 is missing, python3 is $$(python3 -V): install one beside it, then make … PYTHON=its path"; exit 1; }
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is missing: apt-get install python3 python3-venv libgl1 libglib2.0-0"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "venv is missing: apt-get install python3-venv libgl1 libglib2.0-0"; exit 1; }
	$(PYTHON) -m venv $(MOVED) .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@.venv/bin/python -c 'import cv2' 2>/dev/null || { echo "OpenCV misses system libraries: apt-get install python3-venv libgl1 libglib2.0-0"; exit 1; }
	.venv/bin/python -c 'from deepcv import tracking; tracking.connect()'
	@touch $@

run: setup  ## take the dataset of params.yaml through every stage to a registered model
	deepcv check
	dvc repro

ui: setup  ## Prefect and MLflow on loopback, in the foreground
	python -m flows.servers ui

deploy: setup  ## register the deployments and run a worker, in the foreground (needs make ui)
	python -m flows.servers deploy

test: setup  ## the test suite
	pytest -n 2 --dist loadfile

check: setup  ## ruff, mypy strict, import contracts
	ruff check .
	ruff format --check .
	mypy
	lint-imports

acceptance: setup  ## the long checks, with their figures
	pytest -m acceptance -rA

lock: setup  ## resolve requirements.lock anew (needs uv) and versions.yaml from it
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate --upgrade --output-file requirements.lock
	python infra/versions.py

schema: setup  ## write docs/network.schema.json, by which editors complete network files
	python -m infra.network_schema

clean:  ## remove .venv; data, models and .deepcv stay
	rm -rf .venv
