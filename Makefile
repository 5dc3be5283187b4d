# Every target sets up what it needs: `make demo` and `make test` run as they are in a fresh clone.

PYTHON ?= python3
VENV ?= .venv
# The default torch of PyPI is a CUDA build on Linux. For the CPU build: https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
# Test processes, one thread each: on a small model more threads than cores cost time instead of saving it.
WORKERS ?= auto
PYTEST_ARGS ?=
# Packages without which the suite passes; torchvision, timm and flash-attn are never there.
ABSENT ?= trl diffusers datasets deepspeed bitsandbytes
BENCHMARKS ?= $(sort $(wildcard benchmarks/[a-z]*.py))

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-digits test test-all test-absent lint format bench docs clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## a virtual environment with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unimm needs Python 3.11 or newer: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv $(VENV)
ifneq ($(strip $(TORCH_INDEX_URL)),)
	$(BIN)/python -m pip install --index-url $(TORCH_INDEX_URL) --no-deps "$$(grep '^torch==' constraints.txt)"
endif
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## train, judge, save and reload a unified model on Shapes, into out/demo
	$(BIN)/python examples/demo.py

demo-digits: $(STAMP) ## the same on real handwritten digits
	$(BIN)/python examples/demo_digits.py

test: $(STAMP) ## the suite without its slow tests
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-all: $(STAMP) ## the whole suite, then the fast one without each optional package
	$(PYTEST) $(PYTEST_ARGS)
	$(MAKE) test-absent

test-absent: $(STAMP) ## the fast suite once per optional package, with that package blocked
	@set -e; for package in $(ABSENT); do \
		echo "== without $$package"; UNIMM_BLOCK=$$package $(PYTEST) -m 'not slow' $(PYTEST_ARGS); done

lint: $(STAMP) ## ruff (rules and format) and mypy
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## every benchmark, one after the other
	@test -n '$(BENCHMARKS)' || { echo 'no script in benchmarks/' >&2; exit 1; }
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python "$$script"; done

docs: $(STAMP) ## the tables of systems and the pictures of docs/axes, from the package itself
	OMP_NUM_THREADS=1 $(BIN)/python docs/build.py
	OMP_NUM_THREADS=1 $(BIN)/python docs/pictures.py

clean: ## caches and build products
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path './$(VENV)' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## also the environment and what training wrote
	rm -rf $(VENV) out
