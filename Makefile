# Two commands: `make demo` and `make test`; `make help` lists all. Each makes its own virtual environment first.

PYTHON ?= python3
# Pinned: an unpinned torch fetches the newest build and several GB of CUDA packages with it.
# Elsewhere: make setup TORCH="torch==2.11.0"
TORCH  ?= torch==2.13.0
JOBS   ?= 2
PYTEST_ARGS ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-long test-integrations test-frameworks lint verify-all fuzz generated docs site test-site counts performance gpu sanitizer mutation clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## virtual environment in .venv with everything that demo and test need

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "setup: signconv needs Python 3.11 or newer; name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "setup 1/3: virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup 2/3: $(TORCH) (the large download; silent while it runs)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(TORCH)
	@echo "setup 3/3: signconv, editable, with the tools of its tests and its demo"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[test,demo,cpu]'
	@touch $@

demo: setup  ## build an optimizer, verify its kernel, train a small model with it
	$(BIN)/signconv build adamw --state fp4
	$(BIN)/signconv build adamw --convert stosign:noise=golden
	$(BIN)/signconv verify adamw --convert stosign:noise=golden
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/train_tiny.py

# A process runs whole files: what a file makes once for its tests is made once. (Groups of
# pytest-xdist 3.8 do nothing with pytest 9.2, which computes the ids of tests.)
check: lint  ## lint, types, one optimizer through every layer (under two minutes)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(PYTEST_ARGS) @tests/check.txt

test: lint  ## lint, types and the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not long and not site" $(PYTEST_ARGS)

test-long: setup  ## what takes hours: 10,000 random programs and other tests marked long
	$(BIN)/python -m pytest -n $(JOBS) -m long --timeout 7200 $(PYTEST_ARGS)
	SIGNCONV_AOT=all SIGNCONV_RANKS=all $(BIN)/python -m pytest --timeout 7200 $(PYTEST_ARGS) \
	  tests/verification/test_aot.py tests/distributed/test_sharded.py \
	  tests/distributed/test_meshes.py

test-integrations: setup  ## with transformers, accelerate and Lightning, where they are installed
	$(BIN)/python -m pytest -m integration $(PYTEST_ARGS)

test-frameworks: setup  ## with torchtitan and DeepSpeed (installs them into .venv)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[frameworks]'
	$(BIN)/python -m pytest -m integration $(PYTEST_ARGS) tests/integrations/test_ranks.py

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

verify-all: setup  ## the full differential matrix at 50 steps (long)
	$(BIN)/python tools/verify_all.py

FUZZ ?= --minutes 60
fuzz: setup  ## random programs against all witnesses, failures shrunk and kept (FUZZ="--minutes 60")
	$(BIN)/python -m tools.fuzz $(FUZZ)

generated: setup  ## rebuild every file in generated/
	$(BIN)/signconv build --all

docs: setup  ## rebuild docs/algorithms.md and docs/errors.md from the code
	for page in algorithms errors; do \
	  $(BIN)/python -c "from tools.docs.$${page} import page; print(page(), end='')" > docs/$${page}.md.new \
	    && mv docs/$${page}.md.new docs/$${page}.md || exit 1; \
	done
	$(BIN)/python -c "from tools.docs import doors; text = doors.page(); doors.PAGE.write_text(text)"

# MkDocs Material announces MkDocs 2 at every build, as a warning of its own.
site: setup  ## build the docs site into build/site (installs MkDocs into .venv)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

test-site: site  ## its links, pages, search, and how it looks in Chromium (of the system)
	$(BIN)/python -m pytest -q -m site $(PYTEST_ARGS) tests/site

counts: setup  ## refresh tests/data/kernel_counts.json, the table of the speed guard
	$(BIN)/python -m signconv.verification.instructions tests/data/kernel_counts.json

performance: setup  ## render docs/performance.md from its records, or from JSON="docs/raw/a.json …"
	$(BIN)/python -m signconv.bench.page docs/performance.md $(JSON)

gpu:  ## on a GPU machine, with its own Python: the tests marked gpu, then the benchmark
	PYTHON=$(PYTHON) bash tools/gpu_session.sh

sanitizer:  ## on a GPU machine with the CUDA toolkit: memcheck and racecheck of every kernel
	$(PYTHON) -m tools.sanitizer

mutation: setup  ## break signconv in small ways and record which test notices (JOBS at once)
	$(BIN)/python -m tools.mutation --jobs $(JOBS) --json docs/raw/mutation.json --page docs/trust.md

clean:  ## remove caches and build outputs, keep .venv
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)
