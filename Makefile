# `make demo` and `make test` each start from nothing: they build .venv and everything in it.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
SETUP := pyproject.toml constraints.txt $(wildcard native/CMakeLists.txt native/src/*)
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint types lines sanitized docs clean help

help:
	@echo "make demo   a pruned network in a minute"
	@echo "make test   lint, types, line count and every test"
	@echo "make sanitized   the native kernels under AddressSanitizer and UBSan"
	@echo "make lint | types | lines | docs | clean"

demo: .venv/demo.stamp
	$(BIN)/openwork demo

test: lint types lines
	$(BIN)/python -m pytest -q -n $(WORKERS)

lint: .venv/dev.stamp
	$(BIN)/ruff check

types: .venv/dev.stamp
	$(BIN)/mypy

lines: .venv/dev.stamp
	$(BIN)/python tests/count_lines.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.stamp: $(SETUP) | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[data]'
	touch $@

.venv/dev.stamp: $(SETUP) | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ .venv/demo.stamp

sanitized: .venv/dev.stamp
	PYTHON=$(CURDIR)/$(BIN)/python sh tests/native_sanitizers.sh

docs: .venv/dev.stamp
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
