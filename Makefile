# Everything runs from .venv, which the first target that needs it makes. Only Python 3.11+ and make are assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test check format bench clean
.DEFAULT_GOAL := help

help:  ## show what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]' --group dev --group test
	touch $@

install: $(STAMP)  ## install pgfunnel and its tools into .venv

demo: $(STAMP)  ## a storm of clients at an embedded Postgres, without and with pgfunnel (ONCE=1: exit afterwards)
	$(BIN)/pgfunnel demo $(if $(ONCE),--once)

# Most tests wait rather than compute: more processes than cores. A module's tests stay in one, with what they share.
test: $(STAMP)  ## install what is missing and run all tests (ARGS='-m slow': those that take minutes)
	$(BIN)/python -m pytest -n 4 --dist loadscope $(ARGS)

check: $(STAMP)  ## ruff, import rules, mypy --strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(STAMP)  ## let ruff put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## side by side with PgBouncer; writes benchmarks/results/ and docs/benchmarks.md
	$(BIN)/python -m benchmarks $(ARGS)

clean:  ## remove what the targets above made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
