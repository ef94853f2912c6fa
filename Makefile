# Lacuna's two commands are `make demo` and `make test`; both set themselves up through `make install`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := runs/demo
MINUTES ?= 120
JOBS ?= 2
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
TORCH := $(BIN)/python -c 'import importlib.metadata as m; print(m.version("torch"))'

.PHONY: help install demo test test-slow check bench chaos soak golden clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## the environment alone, in .venv, with the pinned versions

# torch goes first and alone; nothing that follows may move it to another version or build.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Lacuna needs Python 3.10 or newer, \
	and $(PYTHON) is " + sys.version.split()[0] + "; name another: make install PYTHON=python3.11")'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) torch
	@$(TORCH) > $(VENV)/.torch
	$(PIP) -e '.[demo,test]'
	@test "$$($(TORCH))" = "$$(cat $(VENV)/.torch)" || { \
	  echo "torch was $$(cat $(VENV)/.torch) and another package moved it to $$($(TORCH)): constraints.txt is wrong" >&2; exit 1; }
	$(BIN)/python -m pip check
	@touch $(STAMP)

demo: install ## pretrain on photographs that ship inside scikit-image, evaluate, write a report
	$(BIN)/lacuna train configs/demo.py
	$(BIN)/lacuna evaluate $(RUN) --methods knn,linear --untrained
	$(BIN)/lacuna report $(RUN)
	@echo "The report is $(CURDIR)/$(RUN)/report.html: open it in a browser."

test: install ## the default test suite, JOBS=2 files at a time
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: install ## the default suite and the tests marked slow
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --slow

check: install ## ruff, mypy and the tests of what may import what
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_house_rules.py

bench: install ## every benchmark, one after the other; results go to benchmarks/results/
	@missed=; for file in $$(grep -l __main__ benchmarks/*.py); do \
	  echo "== $$file"; $(BIN)/python $$file || missed="$$missed $$file"; done; \
	test -z "$$missed" || { echo "missed a goal or failed:$$missed" >&2; exit 1; }

chaos: install ## every reliability goal with small counts, then the goals table; some ten minutes
	$(BIN)/python benchmarks/goals.py --short

soak: install ## every reliability goal in full, then the goals table; hours, MINUTES of them the soak itself
	$(BIN)/python benchmarks/goals.py --full --minutes $(MINUTES)

golden: install ## compute the golden numbers of tests/golden.py anew
	$(BIN)/python tests/golden.py --write

clean: ## remove the environment and every cache; runs and shards stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
