# `make help` lists the targets.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
# Options for pip, for example the CPU build of torch on Linux:
#   make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
# Tests run in parallel processes with one thread each. With more threads, the processes compete for the cores.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup demo notebooks test test-all bench bench-full lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## create the virtual environment and install everything but the 8-bit optimizer

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev]'
	@$(INSTALL) -e '.[kenlm]' \
		|| echo "KenLM does not build here (it needs a C++ compiler). The tests that compare with it are skipped."
	touch $@

# bitsandbytes prints a warning on machines without a GPU, so `make setup` does not install it.
$(VENV)/.8bit: $(VENV)/.installed
	$(INSTALL) -e '.[8bit]'
	touch $@

demo: setup  ## synthesize a corpus, fine-tune Whisper tiny.en on it, transcribe (minutes)
	$(PY) -m ssl_asr demo output_dir=demo

notebooks: setup  ## run all notebooks, and store them with their outputs (half an hour on two cores)
	$(PY) -m tests.notebooks

lint: setup  ## ruff, mypy, and vulture (unused code)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m vulture ssl_asr tests

test: lint  ## lint, types and the fast tests
	$(TEST_ENV) $(PY) -m pytest -n 2 --dist worksteal -m "not slow and not benchmark"

test-all: lint $(VENV)/.8bit  ## lint, types and all tests, also on real weights and speech
	$(TEST_ENV) $(PY) -m pytest -n 2 --dist worksteal -m "not benchmark"

bench: $(VENV)/.bench  ## speed against other libraries (an hour on two cores)
	HF_HUB_OFFLINE=1 BENCH_PEERS=$(CURDIR)/$(VENV)/peers/bin/python $(PY) -m tests.benchmarks.suite

bench-full: $(VENV)/.bench  ## speed against other libraries on whole test sets (hours on two cores)
	BENCH_PEERS=$(CURDIR)/$(VENV)/peers/bin/python $(PY) -m pytest -s -m benchmark tests/benchmarks

# pyctcdecode needs numpy 1, so it gets its own environment.
$(VENV)/.bench: $(VENV)/.installed
	$(INSTALL) -e '.[bench]'
	$(PYTHON) -m venv $(VENV)/peers
	$(VENV)/peers/bin/python -m pip install --quiet --disable-pip-version-check 'numpy<2' pyctcdecode==0.5.0 kenlm==0.3.0
	touch $@

format: setup  ## fix and format with ruff
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove files that runs and tests write
	rm -rf outputs multirun demo .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
