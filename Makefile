# Two commands do everything: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The exact torch version is asked for by name: it selects the CPU build where an index offers one under that name only.
TORCH := $(shell sed -n 's/^\(torch==.*\)$$/\1/p' constraints.txt)
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test drills check format bench clusters lock wheel clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)  ## Install, then run the main job: late flights, from raw files to a rolled-back bad release
	$(BIN)/raymlp run experiment=flights

test: $(INSTALLED)  ## Install, then run the tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

drills: $(INSTALLED)  ## Run the slow tests: processes, disks and nodes are really taken away
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

check: $(INSTALLED)  ## Format, lint, types and import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED)  ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## Measure data, features, training and serving beside what people use instead
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/run.py

clusters: $(INSTALLED)  ## Write what in cluster/ comes from the code: dashboards, and the endpoint of the RayService
	$(BIN)/python cluster/monitoring/dashboards.py
	$(BIN)/python cluster/k8s/endpoint.py --write

lock:  ## Make constraints.txt anew from pyproject.toml, in an empty environment
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	.lock/bin/pip install --quiet --disable-pip-version-check '.[dev,bench]'
	(echo '# Every transitive pin of raymlp[dev,bench]. Made by: make lock'; .lock/bin/pip freeze --exclude raymlp | sed 's/+cpu$$//') > constraints.txt
	rm -rf .lock

wheel: $(INSTALLED)  ## Build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## Remove the environment and what was built; results in artifacts/ stay
	rm -rf $(VENV) .lock dist .mypy_cache .ruff_cache .hypothesis
