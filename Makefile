# Every target first brings .venv up to date with pyproject.toml and constraints.txt.
# On a machine without a GPU, this avoids the CUDA build of torch (about 3 GB):
#   make demo PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
.PHONY: demo up doctor test test-long test-upgrade test-clients lint bench hostile chaos chaos-datasets evaluate train format images lock sbom audit clean

PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/.runtime
DEVELOPMENT := .venv/.development
CLIENTS := .venv/clients/.installed
TOOLS := .release/.tools
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet

demo: $(RUNTIME)
	@$(BIN)/tuwen demo

up: $(RUNTIME)
	@$(BIN)/tuwen up

doctor: $(RUNTIME)
	@$(BIN)/tuwen doctor

# Most tests wait for real processes, so pytest runs 3 processes; each of them starts its own servers.
test: lint
	$(BIN)/pytest -n 3 --dist loadfile

# Generates a Python and a TypeScript client of the OpenAPI document, compiles them, and runs jobs with both.
test-clients: $(DEVELOPMENT) $(CLIENTS)
	$(BIN)/python -m tests.clients

# The whole system around Debian's servers, and beside the previous release: minutes each, so one after the other.
test-long: $(DEVELOPMENT)
	$(BIN)/pytest -m long

# The previous release's processes on this schema, and these on theirs; needs the history of the repository.
test-upgrade: $(DEVELOPMENT)
	$(BIN)/pytest -m long tests/deployment/test_upgrade.py

lint: $(DEVELOPMENT)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(DEVELOPMENT)
	$(BIN)/python -m tests.bench

# Longer, or the same requests again: make hostile MINUTES=30 SEED=7
hostile: $(DEVELOPMENT)
	$(BIN)/python -m tests.hostile $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

# At random for some minutes: make chaos MINUTES=30. Or the project's goal, 10,000 jobs: make chaos GOAL=1
chaos: $(DEVELOPMENT)
	$(BIN)/python -m tests.chaos $(if $(GOAL),--goal) $(if $(MINUTES),--minutes $(MINUTES))

chaos-datasets: $(DEVELOPMENT)
	$(BIN)/python -m tests.chaos_datasets

evaluate: $(DEVELOPMENT)
	$(BIN)/tuwen evaluate

# Trains all built-in models, and continues an interrupted run. In slices: make train MINUTES=8; on several GPUs:
# make train PROCESSES=8
train: $(DEVELOPMENT)
	$(BIN)/tuwen train all --pictures 200000 --ship $(if $(MINUTES),--minutes $(MINUTES)) $(if $(PROCESSES),--processes $(PROCESSES))

format: $(DEVELOPMENT)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# What a release is made with; docs/releasing.md explains each. All of them need the internet, and none is needed to use
# or to change the project.
images: $(DEVELOPMENT)
	$(BIN)/python -m release.images

lock: $(TOOLS)
	.release/bin/python -m release.lock

sbom: $(RUNTIME) $(TOOLS)
	.release/bin/python -m release.sbom

audit: $(TOOLS)
	.release/bin/python -m release.audit

clean:
	rm -rf .venv .release .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# First everything whose hash is known, and that is all but torch and what only its build needs: an index, a mirror or a
# proxy that hands out another file is noticed. Then torch, from whichever index has the build that is wanted, and the
# project itself, built by the hatchling that was installed before.
$(RUNTIME): pyproject.toml constraints.txt requirements/runtime.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo 'Tuwen needs Python 3.11 or newer as $(PYTHON); choose another: make PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo 'This Python cannot make virtual environments; on Debian: apt install python3-venv'; exit 1; }
	@echo 'Installing into .venv; this takes some minutes the first time.'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(INSTALL) --progress-bar on --no-deps --require-hashes -r requirements/runtime.txt
	@$(INSTALL) --progress-bar on --no-build-isolation -c constraints.txt -e '.[worker,datasets,flower,embedded]'
	@touch $@

# Both distributions of this repository, since neither comes from an index.
$(DEVELOPMENT): $(RUNTIME) workers/lab/pyproject.toml requirements/development.txt
	@$(INSTALL) --no-deps --require-hashes -r requirements/development.txt
	@$(INSTALL) --no-build-isolation -c constraints.txt -e '.[dev]' -e workers/lab
	@touch $@

$(TOOLS): requirements/tools.txt
	@$(PYTHON) -m venv --clear .release
	@.release/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --require-hashes -r $<
	@touch $@

# The generators in an environment of their own, with node and npm from wheels: nothing of it needs root.
$(CLIENTS): $(DEVELOPMENT) tests/clients/requirements.txt tests/clients/package-lock.json
	@$(BIN)/python -m venv .venv/clients
	@.venv/clients/bin/python -m pip install --disable-pip-version-check --quiet -r tests/clients/requirements.txt
	@mkdir -p .venv/clients/npm && cp tests/clients/package.json tests/clients/package-lock.json .venv/clients/npm
	@cd .venv/clients/npm && ../bin/npm ci --no-audit --no-fund --silent
	@touch $@
