# What a person does here. `make` lists it. At first it needs Python 3.11, 3.12 or 3.13 with venv, bash, and a package index.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PLAN ?= plans/demo.toml
SEEDS ?= 1,2,3
ARGS ?=
JOBS ?= 4
COVERAGE ?= --cov=fl_node
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; (3,11) <= sys.version_info[:2] <= (3,13) and print("$(p)")' 2>/dev/null)))
NODE := .venv/node-installed
CONTROLLER := .venv/controller-installed
DEV := .venv/dev-installed
NPM := contracts/node_modules/.installed
FL_NODE := .venv/bin/fl-node
# Without the variables of this make, which would reach each make that a test calls; and what Python compiles is kept.
PYTEST := env -u MAKEFLAGS -u MAKELEVEL -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m pytest

# A .venv without pip (python3-venv was missing), or of a Python that was removed or upgraded since.
VENV_IS_BROKEN := $(if $(filter-out help clean,$(MAKECMDGOALS)),$(shell .venv/bin/python -c 'import pip' 2>/dev/null || echo anew))

.PHONY: anew help demo lab controller binaries reproduce bundle test test-testbed test-vm nightly scenarios lint \
	types docs bench bench-testbed bench-modes lock clean

help: ## List what can be done
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

demo: $(NODE) ## A small whole run: chain and store in Python, a header, two learners (3 minutes)
	$(FL_NODE) lab $(PLAN) --or-digits $(ARGS)

lab: binaries ## The same run on three real Geth and three real IPFS nodes (PLAN=…, ARGS=--stay)
	$(FL_NODE) lab $(PLAN) --backend processes --or-digits $(ARGS)

controller: $(CONTROLLER) ## What brings up hosts: Ansible and the tools that fetch things for them

binaries: $(NODE) ## Get Geth and IPFS, pinned and verified
	$(FL_NODE) binaries

reproduce: binaries ## The paper's experiment and its baseline, three seeds (an hour on 2 cores)
	$(FL_NODE) reproduce plans/paper.toml --seeds $(SEEDS) $(ARGS)

bundle: $(CONTROLLER) ## All that a bring-up needs in one archive, from hosts that are up, for rooms without internet
	.venv/bin/ansible-playbook ansible/bundle.yml $(ARGS)

test: $(DEV) binaries ## Tests on this machine alone: units, contract, real Geth and IPFS (JOBS=4, COVERAGE= for none)
	$(PYTEST) --ignore=tests/testbed -n $(JOBS) --dist loadfile $(COVERAGE) $(ARGS)

test-testbed: $(DEV) binaries ## Tests of Vagrantfile, roles and playbooks on three real hosts (docker provider; half an hour)
	$(PYTEST) --timeout=1800 tests/testbed $(ARGS)

test-vm: $(DEV) ## The same roles on three virtual machines (libvirt): bring up, train, audit, reboot
	tests/vm/run $(ARGS)

bench-testbed: $(DEV) ## How long the hosts take to come up, to be looked at again, and what train.yml adds to a run
	.venv/bin/python -m tests.bench.testbed $(ARGS)

nightly: $(DEV) binaries ## Tests that take too long for each change: all of the lab guide, a bundle, what else takes minutes
	$(PYTEST) -m nightly --timeout=1800 $(ARGS)

scenarios: $(DEV) binaries ## Faults and lies on real Geth and IPFS, a line each; writes the table of docs/scenarios.md
	.venv/bin/python -m tests.scenarios $(ARGS)

lint: $(DEV) $(NPM) ## Style of Python, Ansible, YAML and Solidity, and the compiled contract against its source
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PYTEST) -q tests/unit/test_docstrings.py
	.venv/bin/lint-imports --no-logo
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/ansible-lint -q
	.venv/bin/yamllint --strict .
	for playbook in ansible/*.yml; do .venv/bin/ansible-playbook --syntax-check $$playbook >/dev/null || exit 1; done
	cd contracts && npm run --silent lint
	cd contracts && npm run --silent check

types: $(DEV) ## Types of Python
	.venv/bin/mypy

docs: $(DEV) ## The documentation as a site, in site/: docs/, the lab guide, references; a broken link fails it
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs --quiet build --strict
	@echo "open site/index.html"

bench: $(DEV) binaries ## What a round costs beyond training, beside Flower; writes results/bench.json
	.venv/bin/python -m tests.bench $(ARGS)

bench-modes: $(DEV) binaries ## Asynchronous against synchronous, ensembles against their members, three seeds (two hours)
	.venv/bin/python -m tests.bench.modes async $(ARGS)
	.venv/bin/python -m tests.bench.modes ensemble $(ARGS)

lock: $(DEV) ## Renew the locked requirements
	cd requirements && for name in node controller dev; do ../.venv/bin/uv pip compile --quiet --upgrade --universal \
		--python-version 3.11 --prerelease if-necessary-or-explicit --generate-hashes --no-emit-index-url \
		--no-emit-find-links --custom-compile-command "make lock" $$name.in -o $$name.txt || exit 1; done

clean: ## Remove what was installed and built here; runs and results stay
	rm -rf .venv site contracts/node_modules .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python: $(VENV_IS_BROKEN)
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: install one, or say make PYTHON=…"; exit 1; }
	@test ! -e .venv || echo ".venv is incomplete, or its Python is gone: it is made anew"
	@rm -rf .venv
	@$(PYTHON) -m venv .venv && .venv/bin/python -m pip --version >/dev/null || { rm -rf .venv; \
		echo "$(PYTHON) could not make .venv; see above. On Debian and Ubuntu: apt-get install $$(basename "$(PYTHON)")-venv"; exit 1; }

$(NODE): .venv/bin/python requirements/node.txt pyproject.toml
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/node.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(CONTROLLER): .venv/bin/python requirements/controller.txt pyproject.toml
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/controller.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): $(NODE) requirements/dev.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

$(NPM): contracts/package-lock.json
	cd contracts && npm ci --silent
	@touch $@
