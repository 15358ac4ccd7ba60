# Needs python3 >= 3.11 with venv, make and a C compiler. Each target makes .venv from the lock file when it is missing or old.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.locked
READY := $(VENV)/.ready
NATIVE := $(wildcard src/lzero/cpu/engine/native/* src/lzero/trace/readers/native/*)
PYTEST_ARGS ?=

.PHONY: help demo test lint types venv lock clean

help:
	@echo "make demo    run the bundled guest and print its exit tables"
	@echo "make test    run the test suite (PYTEST_ARGS='-k name' for a part of it)"
	@echo "make lint    ruff and the import contracts"
	@echo "make types   mypy --strict"
	@echo "make lock    write requirements.lock anew from pyproject.toml"
	@echo "make clean   remove what the other targets made"

demo: $(READY)
	@$(BIN)/lzero demo

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types: $(READY)
	$(BIN)/mypy

venv: $(READY)

$(LOCKED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lzero needs Python 3.11 or later, $(PYTHON) is " + sys.version.split()[0] + ": set PYTHON=")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@touch $@

# Editable, but built: the native libraries are compiled again whenever their sources change.
$(READY): $(LOCKED) pyproject.toml setup.py $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# uv resolves for every Python version at once, which pip cannot; it comes from PyPI and is used for nothing else.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	scripts/write_lock.sh $(VENV)-lock/bin/uv
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(VENV)-lock build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
