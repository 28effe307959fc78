# make demo, make test: all that is needed is Python 3.11 or later with venv, and a package index.
#
#   TORCH    what pip installs as torch; default: the version pinned in constraints.txt
#   PIP_ARGS more arguments for pip, such as an index for CPU or CUDA builds of torch
#   WORKERS  how many processes run the tests
#   PYTHON   the interpreter that the virtual environment is made with
PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(shell grep '^torch==' constraints.txt)
PIP_ARGS ?=
WORKERS ?= 2
BIN := $(VENV)/bin
LOWEST_VENV ?= .venv-lowest
LOWEST_BIN := $(LOWEST_VENV)/bin
LOWEST_TORCH := $(if $(filter file,$(origin TORCH)),$(shell sed -n 's/^  "torch>=\(.*\)",$$/torch==\1/p' pyproject.toml),$(TORCH))

.PHONY: demo test test-lowest test-slow schemas lint types clean

demo: $(VENV)/.installed
	$(BIN)/hf-farms analyze demo
	$(BIN)/hf-farms analyze demo-healthy
	$(BIN)/hf-farms prune demo --output out/demo-farms-wanda-50 --overwrite
	@echo "Read out/demo-farms-wanda-50/README.md"

# Side by side in as many processes as there are workers, one thread each; the tests of a file share what they set up.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# The lowest version of each package that pyproject.toml names, torch included unless TORCH says otherwise.
test-lowest: $(LOWEST_VENV)/.installed
	OMP_NUM_THREADS=1 $(LOWEST_BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow --timeout=7200

schemas: $(VENV)/.installed-test
	$(BIN)/python .github/schemas.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(LOWEST_VENV) out dist build

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

# uv finds the versions, pip installs them: by its arguments, and without what the build of torch does not need.
$(LOWEST_VENV)/.installed: pyproject.toml
	test -x $(LOWEST_BIN)/python || $(PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) uv
	echo "$(LOWEST_TORCH)" > $(LOWEST_VENV)/torch.txt
	$(LOWEST_BIN)/uv pip compile -q --resolution lowest-direct --extra test --constraints $(LOWEST_VENV)/torch.txt \
	  --python $(LOWEST_BIN)/python --output-file $(LOWEST_VENV)/lowest.txt pyproject.toml
	$(LOWEST_BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c $(LOWEST_VENV)/lowest.txt -e ".[test]"
	touch $@
