# The targets for users; `make` lists them. They need Python 3.11, 3.12 or 3.13 with venv, bash, and a package index.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PLAN ?= plans/demo.toml
SEEDS ?= 1,2,3
ARGS ?=
JOBS ?= 4
COVERAGE ?= --cov=fl_node
IS_SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell \
	$(p) -c '$(IS_SUITABLE)' 2>/dev/null && echo $(p))))
NODE := .venv/node-installed
CONTROLLER := .venv/controller-installed
DEV := .venv/dev-installed
NPM := contracts/node_modules/.installed
FL_NODE := .venv/bin/fl-node
# Unset this make's variables, because tests call make too; let Python keep its compiled files.
PYTEST := env -u MAKEFLAGS -u MAKELEVEL -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m pytest

# A .venv without pip (python3-venv was missing), or whose Python was removed or is of another version.
VENV_IS_BROKEN := $(if $(filter-out help clean,$(MAKECMDGOALS)),$(shell \
	.venv/bin/python -c 'import pip; $(IS_SUITABLE)' 2>/dev/null || echo rebuild))

.PHONY: rebuild help demo lab controller binaries wheel collection reproduce bundle test test-testbed test-vm nightly scenarios lint \
	types docs bench bench-testbed bench-modes lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(NODE) ## Run a small experiment: chain and store in Python, a header, two learners (3 minutes)
	$(FL_NODE) lab $(PLAN) --or-digits $(ARGS)

lab: binaries ## Run it on three real Geth and three real IPFS nodes (PLAN=…, ARGS=--stay)
	$(FL_NODE) lab $(PLAN) --backend processes --or-digits $(ARGS)

controller: $(CONTROLLER) ## Install Ansible and the download tools that bring up hosts

binaries: $(NODE) ## Get the pinned Geth and IPFS programs and verify them
	$(FL_NODE) binaries

wheel: $(NODE) ## Build the package as one file in dist/: fl-node with its plans, for machines without a clone
	.venv/bin/python -P -m hatchling build --target wheel --directory dist

collection: $(CONTROLLER) ## Build the roles and playbooks as an Ansible collection in dist/, for your own inventory
	.venv/bin/python ansible/files/collection.py --folder dist

reproduce: binaries ## Reproduce the paper's experiment and its baseline, three seeds (an hour on 2 cores)
	$(FL_NODE) reproduce plans/paper.toml --seeds $(SEEDS) $(ARGS)

bundle: $(CONTROLLER) ## Collect everything for an offline bring-up in one archive, from hosts that are up
	.venv/bin/ansible-playbook ansible/bundle.yml $(ARGS)

test: $(DEV) binaries ## Run the tests on this machine: units, contract, real Geth and IPFS (JOBS=4, COVERAGE= for none)
	$(PYTEST) --ignore=tests/testbed -n $(JOBS) --dist loadfile $(COVERAGE) $(ARGS)

test-testbed: $(DEV) binaries ## Test Vagrantfile, roles and playbooks on three real hosts (docker provider; half an hour)
	$(PYTEST) --timeout=1800 tests/testbed $(ARGS)

test-vm: $(DEV) ## Test the roles on three virtual machines (libvirt): bring up, train, audit, reboot
	tests/vm/run $(ARGS)

bench-testbed: $(DEV) ## Measure the time to bring up hosts, to provision them again, and the overhead of train.yml
	.venv/bin/python -m tests.bench.testbed $(ARGS)

nightly: $(DEV) binaries ## Run the tests that take minutes: the complete lab guide, a bundle, and more
	$(PYTEST) -m nightly --timeout=1800 $(ARGS)

scenarios: $(DEV) binaries ## Run all fault scenarios on real Geth and IPFS; write the table of docs/scenarios.md
	.venv/bin/python -m tests.scenarios $(ARGS)

lint: $(DEV) $(NPM) ## Check the style of Python, Ansible, YAML and Solidity, and the compiled contract against its source
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PYTEST) -q tests/unit/test_docstrings.py
	.venv/bin/lint-imports --no-logo
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/ansible-lint -q
	.venv/bin/yamllint --strict .
	for playbook in ansible/*.yml; do .venv/bin/ansible-playbook --syntax-check $$playbook >/dev/null || exit 1; done
	cd contracts && npm run --silent lint
	cd contracts && npm run --silent check

types: $(DEV) ## Check the types of Python
	.venv/bin/mypy

docs: $(DEV) ## Build the documentation site in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs --quiet build --strict
	@echo "open site/index.html"

bench: $(DEV) binaries ## Measure what a round costs beyond training, compared with Flower; write results/bench.json
	.venv/bin/python -m tests.bench $(ARGS)

bench-modes: $(DEV) binaries ## Compare asynchronous with synchronous runs, and ensembles with their members (two hours)
	.venv/bin/python -m tests.bench.modes async $(ARGS)
	.venv/bin/python -m tests.bench.modes ensemble $(ARGS)

lock: $(DEV) ## Update the locked requirements
	cd requirements && for name in node controller dev; do ../.venv/bin/uv pip compile --quiet --upgrade --universal \
		--python-version 3.11 --prerelease if-necessary-or-explicit --generate-hashes --no-emit-index-url \
		--no-emit-find-links --custom-compile-command "make lock" $$name.in -o $$name.txt || exit 1; done

clean: ## Remove installed and built files; keep runs and results
	rm -rf .venv dist site contracts/node_modules .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python: $(VENV_IS_BROKEN)
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is required: install it, or set make PYTHON=…"; exit 1; }
	@$(PYTHON) -c '$(IS_SUITABLE)' || { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13: set make PYTHON=…"; exit 1; }
	@test ! -e .venv || echo ".venv is incomplete, or its Python is missing or of another version: rebuilding .venv"
	@rm -rf .venv
	@$(PYTHON) -m venv .venv && .venv/bin/python -m pip --version >/dev/null || { rm -rf .venv; \
		echo "$(PYTHON) could not create .venv; see above. On Debian and Ubuntu: apt-get install $$(basename "$(PYTHON)")-venv"; exit 1; }

# For such Macs TensorFlow, cryptography and ckzg have no wheels.
ifeq ($(shell uname -sm),Darwin x86_64)
.PHONY: not-an-intel-mac
not-an-intel-mac:
	@echo "Python packages such as TensorFlow don't support Macs with Intel processors." \
		"vagrant up works: the header is the controller. For other targets use a container, for example:" \
		'docker run --rm --volume "$$PWD:/src:ro" python:3.12 sh -c "cp -R /src /lab && cd /lab && rm -rf .venv && make demo"'
	@exit 1

.venv/bin/python: | not-an-intel-mac
endif

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
