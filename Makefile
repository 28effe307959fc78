# make demo, make test: all that is needed is Python 3.11 or later with venv, and a package index.
#
#   TORCH    what pip installs as torch; default: the version pinned in constraints.txt
#   PIP_ARGS more arguments for pip, such as an index for CPU or CUDA builds of torch
#   PYTHON   the interpreter that the virtual environment is made with
PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(shell grep '^torch==' constraints.txt)
PIP_ARGS ?=
BIN := $(VENV)/bin

.PHONY: demo test test-slow schemas lint types clean

demo: $(VENV)/.installed
	$(BIN)/hf-farms prune demo --output out/demo-farms-wanda-50 --overwrite
	@echo "Read out/demo-farms-wanda-50/README.md"

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow --timeout=3600

schemas: $(VENV)/.installed-test
	$(BIN)/python .github/schemas.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) out dist build

# torch comes first and alone, so that no other package pulls in another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) "$(TORCH)"
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -e ".[test]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -e ".[dev]"
	touch $@
