# `make quickstart` and `make test` are all a newcomer needs; each prepares .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test test-fast test-cluster test-browser test-release-env lint format constraints clean install docs bench paper-small

quickstart: $(INSTALLED)
	$(BIN)/adaponder run quickstart

# Two tests at a time, those of a file one after the other: its fixtures are made once. Most slow tests wait for processes
# that wait for each other, so that one at a time leaves a core idle.
TWO_AT_A_TIME = -n 2 --dist loadscope --no-loadscope-reorder

test: test-fast
	$(BIN)/python -m pytest -q $(TWO_AT_A_TIME) -m "slow and not alone and not cluster and not browser and not release_env"
	$(BIN)/python -m pytest -q -m "alone and not cluster and not browser and not release_env"

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -q $(TWO_AT_A_TIME) -m "not slow and not cluster and not browser and not release_env"

# A Slurm and hosts made on this machine, by root; what is missing is installed where apt-get may, else tests skip.
test-cluster: $(INSTALLED)
	@tests/cluster/install.sh
	$(BIN)/python -m pytest -q -rs -m cluster

# Reports in a real browser; it is installed where apt-get may, else the tests skip.
test-browser: $(INSTALLED)
	@tests/reporting/install.sh
	$(BIN)/python -m pytest -q -rs -m browser

# A release where only torch, transformers and safetensors are installed, from the package index: two minutes.
test-release-env: $(INSTALLED)
	$(BIN)/python -m pytest -q -m release_env

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(INSTALLED)

docs: $(INSTALLED)
	$(BIN)/python -m pipeline.recipe_doc > docs/recipe.md

# Three quarters of an hour on a machine with nothing else to do; then README.md's table is that machine's. Learned halting is measured
# too where there is a released folder: the quickstart's, or make bench MODEL=... TEXT=...
MODEL ?= $(patsubst %/config.json,%,$(wildcard runs/quickstart/release/config.json))
LEARNED = --model $(MODEL) $(if $(TEXT),--text $(TEXT),)
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.prefill --rounds 5 --output benchmarks/results/prefill.json
	$(BIN)/python -m benchmarks.decode --output benchmarks/results/decode-1-row.json
	$(BIN)/python -m benchmarks.decode --rows 8 --output benchmarks/results/decode-8-rows.json
	$(BIN)/python -m benchmarks.training_step --rounds 5 --output benchmarks/results/training_step.json
	$(BIN)/python -m benchmarks.training_memory --rounds 5 --output benchmarks/results/training_memory.json
	$(BIN)/python -m benchmarks.checkpoint_saving --rounds 5 --output benchmarks/results/checkpoint_saving.json
	$(BIN)/python -m benchmarks.training_loop --rounds 5 --output benchmarks/results/training_loop.json
	$(BIN)/python -m benchmarks.training_loop --rounds 5 --ranks 2 --tokens 128 --output benchmarks/results/training_loop-2-ranks.json
	$(BIN)/python -m benchmarks.tokenization --rounds 5 --output benchmarks/results/tokenization.json
	$(BIN)/python -m benchmarks.loader --output benchmarks/results/loader.json
ifneq ($(MODEL),)
	$(BIN)/python -m benchmarks.prefill $(LEARNED) --output benchmarks/results/prefill-learned.json
	$(BIN)/python -m benchmarks.decode $(LEARNED) --output benchmarks/results/decode-learned.json
endif
	$(BIN)/python -m benchmarks.table

# The paper's comparisons in small, three seeds: some 42 minutes on two cores. The same command continues.
paper-small: $(INSTALLED)
	$(BIN)/python -m benchmarks.paper_small --report docs/results/paper-small

# The stamp is newer than what it was made from, so a second call installs nothing.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "adaponder needs Python 3.10 or newer: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(INSTALLED)

# Renews every pin for all supported Python versions, those of the installer included; torch stays where it was tried.
constraints:
	$(PYTHON) -m venv $(VENV)/uv
	$(VENV)/uv/bin/python -m pip install --quiet uv
	echo 'torch==2.13.0' > $(VENV)/torch.txt
	printf 'pip\nsetuptools\nwheel\n' | $(VENV)/uv/bin/uv pip compile --universal --python-version 3.10 --extra dev \
		--upgrade --no-header --no-annotate --constraint $(VENV)/torch.txt --output-file constraints.txt pyproject.toml -

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
