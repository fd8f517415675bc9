# Everything starts here; `make help` lists it.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
# torch spreads one process over all cores: tests run side by side instead, one core each.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup demo test test-all bench lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## make the virtual environment and install everything

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[kenlm]' \
		|| echo "KenLM does not build here (it needs a C++ compiler): the tests that compare with it are skipped"
	touch $@

demo: setup  ## speak a corpus, fine-tune Whisper tiny.en on it, transcribe (minutes)
	$(PY) -m ssl_asr demo output_dir=demo

lint: setup  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint  ## lint, types and the fast tests
	$(TEST_ENV) $(PY) -m pytest -n 2 --dist worksteal -m "not slow and not benchmark"

test-all: lint  ## and the slow ones, on real weights and speech
	$(TEST_ENV) $(PY) -m pytest -n 2 --dist worksteal -m "not benchmark"

bench: $(VENV)/.bench  ## speed against peers, in one run each (hours on two cores)
	BENCH_PEERS=$(CURDIR)/$(VENV)/peers/bin/python $(PY) -m pytest -s -m benchmark tests/benchmarks

# pyctcdecode wants numpy 1, so it has an environment of its own.
$(VENV)/.bench: $(VENV)/.installed
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(PYTHON) -m venv $(VENV)/peers
	$(VENV)/peers/bin/python -m pip install --quiet --disable-pip-version-check 'numpy<2' pyctcdecode==0.5.0 kenlm==0.3.0
	touch $@

format: setup  ## rewrite to the house style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove what runs and tests leave
	rm -rf outputs multirun demo .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
