# Two commands: `make chat` talks to a model, `make test` proves the tree. `make help` lists the rest.

PYTHON ?= python3
BIN := .venv/bin
# What `make unit` runs, and in how many processes.
T ?= tests
JOBS ?= $(if $(filter tests,$(T)),2,0)

# Handed on as typed, dollar signs included.
override PROMPT := $(value PROMPT)
override MODEL := $(value MODEL)
export PROMPT MODEL

CHECKED := mtactors kernels entrypoints tests .ci $(wildcard examples benchmarks)

.PHONY: help install chat test lint format typecheck unit test-pythons test-compilers chaos bench-smoke conformance clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile

install:  ## create .venv with mtactors and all that it needs (PYTHON=python3.12)
	@command -v "$(PYTHON)" >/dev/null || { echo "make install: no $(PYTHON) found: install Python 3.10 to 3.13, or name it in PYTHON=" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 7))' || { echo "make install: $(PYTHON) is too old: name Python 3.10 to 3.13 in PYTHON=" >&2; exit 1; }
	@"$(PYTHON)" .ci/install.py

chat: install  ## talk to a model (MODEL=..., PROMPT="one question")
	@exec $(BIN)/mtactors chat $${MODEL:+"$$MODEL"} $${PROMPT:+--prompt "$$PROMPT"}

test: install  ## lint, types and tests; what .ci/run calls
	@failed=; \
	for part in lint typecheck unit; do \
	  echo "== make $$part"; \
	  $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; \
	done; \
	if [ -n "$$failed" ]; then echo "make test: failed:$$failed" >&2; exit 1; fi; \
	echo "make test: passed"

lint: install  ## ruff, rules and formatting
	@$(BIN)/ruff check $(CHECKED)
	@$(BIN)/ruff format --check $(CHECKED)

format: install  ## rewrite the sources as ruff wants them
	@$(BIN)/ruff check --fix $(CHECKED)
	@$(BIN)/ruff format $(CHECKED)

# kernels/ and entrypoints/ are mtactors.kernels and mtactors.entrypoints only when installed, so mypy
# is shown a tree of symbolic links with the installed layout.
typecheck: install  ## mypy --strict on package and tests
	@$(BIN)/python .ci/typecheck.py

unit: install  ## the tests alone (T=tests/front/test_scheduler.py, JOBS=2)
	@$(BIN)/pytest -n $(JOBS) $(T)

test-pythons: install  ## the tests that need no torch, on every other Python found
	@$(BIN)/python .ci/test_pythons.py $(if $(filter tests,$(T)),,$(T))

test-compilers: install  ## build with every gcc >= 11 and clang >= 14 found, test each (C=clang++-14)
	@$(BIN)/python .ci/test_compilers.py $(C)

chaos: install  ## killed workers, forged frames, hostile clients, leaks (half an hour; ARGS=--quick)
	@$(BIN)/python benchmarks/chaos.py $(ARGS)

bench-smoke: install  ## has anything become slower? (UPDATE=1 writes new baselines)
	@$(BIN)/python benchmarks/smoke.py $(if $(UPDATE),--update)

conformance: install  ## foreign clients and gateways against real servers (minutes; C=check_openai.py)
	@test -x build/conformance/bin/python || "$(PYTHON)" -m venv build/conformance
	@build/conformance/bin/pip install --quiet -r tests/conformance/requirements.txt
	@MTACTORS="$(CURDIR)/$(BIN)/mtactors" build/conformance/bin/pytest -c tests/conformance/pytest.ini \
	  tests/conformance/$(C)

clean:  ## remove what was built and installed
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
