# Everything starts from Python alone. `make demo` and `make test` build the virtual environment .venv when it is not there yet.
#   make demo PYTHON=python3.12     another interpreter (3.11 or newer)
#   make demo TORCH=/path/to.whl    another build of torch

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_VERSION := 26.1.2

VENV := .venv
RUN := $(VENV)/bin/python
# a process a core, each on one thread: small networks gain nothing from two
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --dist loadfile
PIP_INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all check format clean

demo: $(VENV)/.demo
	$(RUN) examples/digits.py

test: $(VENV)/.dev
	$(PYTEST)

test-all: $(VENV)/.dev
	$(PYTEST) -m "slow or not slow"

check: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(RUN) -m pytest --quiet tests/test_house.py

format: $(VENV)/.dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(VENV) demo-out dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# torch goes first: left to choose by itself, pip may take a build for another accelerator, several GB large.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lighten needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "Preparing $(VENV) (once; a few minutes) ..."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check pip==$(PIP_VERSION)
	$(PIP_INSTALL) "$(TORCH)"
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP_INSTALL) --editable ".[all]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP_INSTALL) --editable ".[all,executorch,litert,dev]"
	@touch $@
