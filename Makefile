# Every target first does whatever set-up it still needs; `make` alone lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
stamps := .cache/stamps
bin := .venv/bin
MINUTES ?= 10
SEED ?= 1
WORKERS ?= 3
# Where it is set, every process that a test starts compiles all it imports: half of what a start costs.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run test check bench prove torture lock

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(stamps)/venv ## make .venv with every dependency and both packages

run: $(stamps)/venv ## run nbpulse with a demo class and two real kernels; Ctrl-C stops it
	$(bin)/nbpulse demo --real 2

# Most tests wait for something, so there are more workers than cores. A file's tests share servers and stay together;
# pyproject.toml names the longest files first. Many tests are about seconds, and a busy machine can hold one up for as
# long: what failed is tried once more with nothing beside it, and must then pass (docs/decisions/0022).
test: $(stamps)/venv servers chromium ## run all tests but the slow ones, WORKERS=3 at a time
	$(bin)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder || { \
		[ $$? -eq 1 ] && echo "Failed beside others; once more, with nothing beside them:" && \
		$(bin)/python -m pytest --last-failed --last-failed-no-failures none --maxfail 1; }

check: $(stamps)/venv ## lint, format, types, import floors, generated documents, known weaknesses of dependencies
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports --cache-dir .cache/import_linter
	$(bin)/python ops/check_generated.py
	$(bin)/python ops/audit_dependencies.py

bench: $(stamps)/venv ## measure; writes bench/results/*.json and the tables in docs
	$(bin)/python bench/run.py

prove: $(stamps)/venv servers chromium ## run all tests with the larger numbers
	NBPULSE_TEST_SCALE=full $(bin)/python -m pytest -m ""

torture: $(stamps)/venv ## draw faults at random: make torture MINUTES=10 SEED=1
	PYTHONPATH=server/tests $(bin)/python -m torture --minutes $(MINUTES) --seed $(SEED) --result bench/results/torture.json

lock: $(stamps)/venv ## pin the newest versions the pyprojects allow into requirements.lock
	$(bin)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		server/pyproject.toml capture/pyproject.toml --group pyproject.toml:dev -o requirements.lock

$(stamps)/venv: requirements.lock server/pyproject.toml capture/pyproject.toml ops/setup.sh
	@mkdir -p $(stamps)
	ops/setup.sh
	@touch $@

# Both return at once when there is nothing to do. Where they cannot help, the tests say why they are skipped; in CI
# those tests fail.
.PHONY: servers chromium
servers:
	-@ops/debian.sh .cache/debian/postgresql postgresql-15 libpq5
	-@ops/debian.sh .cache/debian/postgresql-replication postgresql-15 postgresql-client-15 libpq5
	-@ops/debian.sh .cache/debian/redis redis-server redis-tools
	-@ops/debian.sh .cache/debian/influxdb influxdb influxdb-client
	-@ops/debian.sh .cache/debian/pgbouncer pgbouncer libc-ares2

chromium:
	-@ops/chromium.sh
