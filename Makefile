# make demo   collect, train and plan on the rope; says where the report lies
# make test   the whole test suite
# make lint   ruff, mypy, import-linter
# make clean  remove .venv, caches and build products; runs/ stays
# Each makes .venv first, and installs a library for drawing without a screen where it can.

EPISODES ?= 1500
STEPS ?= 1500
GOALS ?= 40
DEMO ?= runs/demo

PYTHON3 ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint clean gl

demo: gl
	$(BIN)/latentplan collect rope --episodes $(EPISODES) --out $(DEMO)/rope.zarr
	$(BIN)/latentplan train cfm --data $(DEMO)/rope.zarr --run $(DEMO)/run --resume \
	  training.steps=$(STEPS)
	@$(MAKE) --no-print-directory $(DEMO)/report/.$(GOALS)-goals
	@echo "The report: $(DEMO)/report/report.html"

# Marked when it ended, so that running the demo again repeats it only for a newer model.
$(DEMO)/report/.$(GOALS)-goals: $(DEMO)/run/best.safetensors
	$(BIN)/latentplan plan --run $(DEMO)/run --episodes $(GOALS) --out $(DEMO)/report
	@touch $@

test: gl
	@$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache \
	  .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "python >= 3.11 is needed: make PYTHON3=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON3) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time takes some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable ".[dev]"
	@touch $@

gl: $(READY)
	@if ! $(BIN)/python -m latentplan.sim.gl >/dev/null 2>&1 \
	    && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing OpenGL for drawing without a screen"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	    libegl1 libopengl0 libgl1-mesa-dri >/dev/null; \
	fi
	@$(BIN)/python -m latentplan.sim.gl >/dev/null
