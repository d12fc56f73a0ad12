# Two commands do all the set-up: `make demo` and `make test`. Both begin with `make setup`.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.current

BRIDGE := tests/bridge/.venv

.PHONY: bridge-env bridge setup demo test unit e2e rigs lint render bench clean

setup: $(STAMP)

# Anything installed depends on these two files alone; when they change, so does the environment.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is needed; set PYTHON=... to name another 3.11+"; exit 1; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[sky,tiny,sweep,dev]" --constraint constraints.txt
	@touch $(STAMP)

demo: setup
	$(BIN)/nemo-sky launch tiny all --cloud local

test: setup lint unit e2e

unit: setup
	$(BIN)/python -m pytest tests/unit -n 3 --dist worksteal

e2e: setup
	$(BIN)/python -m pytest tests/e2e -n 2 --dist loadfile

# A real Slurm and an emulated AWS on this machine, for SkyPilot to launch on. Needs root and Debian, else it
# skips and says why; with NEMO_SKY_RIGS=1 that is a failure.
# RIGS names some of them; `-m ci` are those that .ci/run has the time for.
RIGS ?= tests/rigs
rigs: setup
	$(BIN)/python -m pytest $(RIGS) -n 2 --dist loadscope -rs --durations 20

# Megatron-Bridge needs transformers 4, so its tests have an environment of their own: 3 GB, made once.
# --no-deps: its declared dependencies ask for CUDA. tests/bridge/stubs.py stands in for what is left out.
bridge-env: $(BRIDGE)/.current

$(BRIDGE)/.current: tests/bridge/requirements.txt tests/bridge/constraints.txt
	[ -x $(BRIDGE)/bin/python ] || $(PYTHON) -m venv $(BRIDGE)
	$(BRIDGE)/bin/python -m pip install --quiet --no-deps megatron-bridge==0.3.1
	$(BRIDGE)/bin/python -m pip install --quiet --requirement tests/bridge/requirements.txt --constraint tests/bridge/constraints.txt
	@touch $@

# The real Megatron-Bridge: every config validated, and nano3's own scripts launched on a CPU (shimmed).
bridge: setup bridge-env
	$(BIN)/python -m pytest tests/bridge

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nemo-sky check
	$(BIN)/nemo-sky render --all --check

render: setup
	$(BIN)/nemo-sky render --all

bench: setup
	$(BIN)/python benchmarks/startup.py

clean:
	rm -rf $(VENV) .nemo-sky
