# Two commands for a newcomer: `make demo` and `make test`. Everything is installed into .venv by the first of them.
PYTHON ?= python3
BIN := .venv/bin
# Tests run two processes with one torch thread each: more threads than cores make a tiny model many times slower.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

.PHONY: demo test test-all lint format types clean

demo: .venv/installed
	$(BIN)/pluralign demo

test: .venv/installed
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-all: .venv/installed
	$(TEST_ENV) PLURALIGN_TEST_ALL=1 $(BIN)/python -m pytest -n 2 -m "not gpu"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist runs .pytest_cache .mypy_cache .ruff_cache
