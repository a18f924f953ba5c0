# What a developer types. `make test` needs nothing but Debian, make, and root (or sudo) for installing packages.

SHELL = /bin/bash
PYTHON = .venv/bin/python
JOBS ?= 2
CAMPAIGN ?= --whole
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL = help
.PHONY: help bootstrap deb lint unit vm slow test test-all campaign fuzz bench demo shell clean

help: ## Show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

bootstrap: ## Install what building and testing needs (Debian packages, .venv)
	@packaging/bootstrap

deb: ## Build the Debian package into dist/
	@packaging/build-deb

lint: ## Check style, types and imports
	@.venv/bin/ruff check --quiet
	@.venv/bin/ruff format --check --quiet
	@.venv/bin/mypy --strict src tests
	@PYTHONPATH=src .venv/bin/lint-imports --no-logo

unit: ## Run the unit tests (as root: an entry must be root's)
	@$(AS_ROOT) env PYTHONPATH=src PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m pytest -q -p no:cacheprovider tests/unit

vm: ## Run the tests in the machine that keep a promise of the README
	@$(PYTHON) -m tests.machine build enrolled
	@$(PYTHON) -m pytest -q tests/vm -m "not slow and not campaign" -n $(JOBS)

slow:
	@$(PYTHON) -m tests.machine build enrolled
	@$(PYTHON) -m pytest -q tests/vm -m "slow and not campaign" -n $(JOBS) --durations=20 --durations-min=20

test: ## Everything a change must pass: bootstrap, deb, lint, unit, vm
	@.ci/steps bootstrap deb lint unit vm

test-all: ## All of `test`, and other tests in the machine
	@.ci/steps bootstrap deb lint unit vm slow

campaign: ## All tests that are left, and many interruptions (CAMPAIGN='pulled=200' and the like; takes hours)
	@packaging/bootstrap
	@packaging/build-deb
	@$(PYTHON) -m tests.machine build enrolled
	@# Not by $$(MAKE): `make -n` would run all of this.
	@failed=; \
	    make fuzz || failed+=" fuzzing"; \
	    $(PYTHON) -m pytest -q tests/vm -m campaign -n $(JOBS) || failed+=" tests"; \
	    $(PYTHON) -m tests.campaign --jobs $(JOBS) $(CAMPAIGN) || failed+=" interruptions"; \
	    $(PYTHON) -m tests.campaign.report build/campaign.jsonl || failed+=" report"; \
	    PYTHONPATH=src $(PYTHON) -m tests.fuzz --report || failed+=" report"; \
	    if [ "$$failed" ]; then echo "CAMPAIGN FAILED:$$failed"; exit 1; fi; \
	    echo "CAMPAIGN PASSED"

fuzz: ## Make up input for all that is read from others (FUZZ='--minutes 1 NAME' and the like)
	@mkdir -p build/fuzz
	@$(AS_ROOT) env PYTHONPATH=src PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.fuzz $(or $(FUZZ),--minutes 10 --cases 100000)
	@PYTHONPATH=src $(PYTHON) -m tests.fuzz --report

bench: ## Measure it beside rsync, borg and restic (BENCH='--files 100000' and the like)
	@packaging/bootstrap
	@packaging/build-deb
	@$(PYTHON) -m tests.machine build installed
	@$(PYTHON) -m tests.bench $(BENCH)

demo: ## Show a backup from plug to pull in a machine
	@packaging/bootstrap || { echo "DEMO FAILED: packaging/bootstrap ended with an error"; exit 1; }
	@$(PYTHON) -m tests.demo

shell: ## Open a machine with a stick to plug in, to try things out
	@$(PYTHON) -m tests.machine shell

clean: ## Remove what was built (the machine's states stay in the user's cache)
	@rm -rf build dist .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
