# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-full test-slurm lint format bench docs tables clean install

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv and install certiqa with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "certiqa needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## the main job on the embedded data set: train, certify, report
	$(BIN)/python train.py

test: lint  ## the tests, with lint and types
	$(BIN)/python -m pytest -m "not full" -n 2

test-full: $(STAMP)  ## tests that need a browser or more time
	$(BIN)/python -m pytest -m full -n 2 --dist loadfile

test-slurm: $(STAMP)  ## sweeps on a real SLURM, where slurm-wlm and munge are installed (part of test-full)
	$(BIN)/python -m pytest -m full -rs tests/slurm

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## speed, as ratios against a reference in the same run (docs/performance.md)
	$(BIN)/python benchmarks/certification.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/attacks.py
	$(BIN)/python benchmarks/restoration.py
	$(BIN)/python benchmarks/purifiers.py

docs: $(STAMP)  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

tables: $(STAMP)  ## the table of docs/mini.md, made again (about an hour on 2 cores)
	$(BIN)/python benchmarks/mini_table.py

clean:  ## remove builds and caches, keep outputs/ and .venv
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
