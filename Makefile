# `make demo` and `make test` need only Python 3.11 or 3.12 and make; everything else goes into .venv.
# PYTHON=/path/to/python3.11 chooses the interpreter. A CPU build of torch where PyPI's is the CUDA one:
#   make setup PIP_TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
SHELL := /bin/bash
PYTHON ?= $(shell for name in python3.11 python3.12 python3 python; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$name && break; done)
PIP_TORCH_ARGS ?=
VENV := .venv
PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PATH

.PHONY: help setup demo test check clean-venv

help:
	@echo "make demo   train the small NAVA, generate clips that speak, show what they are worth"
	@echo "make test   run the tests"
	@echo "make check  ruff (lint and format), pyright and the import rule"
	@echo "make setup  create .venv (the others do it themselves)"

setup:
	@if [ -z "$(PYTHON)" ]; then echo "make: Python 3.11 or 3.12 is needed, none was found; install one or say make PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@$(PYTHON) .ci/bootstrap.py $(PIP_TORCH_ARGS)

demo: setup
	@$(VENV)/bin/nava demo

test: setup
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/python -m pytest tests/test_architecture.py

clean-venv:
	rm -rf $(VENV)
