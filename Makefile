# Everything from a fresh clone: each target sets up what it needs. Needs Python 3.11, git and make,
# `test-all` also Debian's chromium.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-all lint types survey clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)  ## train the demo model, run the whole job on it, publish it to a local Hub
	$(BIN)/abl-hub demo

# Two workers on two cores: with one thread each they do not wait for each other. A file's tests
# stay together, so that what they share is made once.
test test-all: export OMP_NUM_THREADS = 1

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

survey: $(READY)  ## trace and edit every architecture, rewrite docs/architectures.md
	PYTHONPATH=. $(BIN)/python benchmarks/survey.py --out docs/architectures.md

clean:
	rm -rf $(VENV) .cache dist build
