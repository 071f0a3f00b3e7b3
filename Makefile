# make run    KPIs of a sample, into output/      make test   every test
# make bench  how fast the batch run is           make lint   ruff and mypy
# make clean  back to a bare clone                make config what is in force, and why
PYTHON ?= python3.11
VENV := .venv
# A virtual environment cannot be moved, so where it stands is part of what it is made from.
LOCK_ID := $(shell { cat requirements.lock setup.py pyproject.toml; echo "$(CURDIR)"; } | cksum | cut -d ' ' -f 1)
READY := $(VENV)/ready-$(LOCK_ID)
INPUT ?= $(firstword $(wildcard ../shared/data/ibm_care_dev.ndjson) fixtures/sample/events.ndjson)
OUTPUT ?= output

.DEFAULT_GOAL := run
.PHONY: run test bench lint config clean

run: $(READY)
	$(VENV)/bin/care-kpis batch --input "$(INPUT)" --output "$(OUTPUT)"

test: $(READY)
	$(VENV)/bin/python -m pytest

bench: $(READY)
	$(VENV)/bin/python tests/bench_batch.py

lint: $(READY)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

config: $(READY)
	$(VENV)/bin/care-kpis config

clean:
	rm -rf $(VENV) output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Exactly what the lock says: a lock that changed makes the environment anew.
$(READY): requirements.lock setup.py pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Expected $(PYTHON) on the PATH; install it, or say make PYTHON=…" >&2; exit 2; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
