# The two commands of README.md are `make demo` and `make test`; both set the environment up by themselves.
PYTHON ?= python3
UV := .uv/bin/uv
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := --extra server --extra postgres --extra s3 --extra pkcs11 --extra awskms --extra onnxruntime --extra converters
STAMP := $(VENV)/.synced
WEB := converters/browser/node_modules
# Folders of tests that do not mind a neighbour; of the others each file runs in one process, for they time out and kill.
PARALLEL := tests/unit tests/contracts tests/attacks tests/fuzz tests/integration
ARGS ?=
SUITE ?=
export UV_NO_PROGRESS ?= 1
export UV_PYTHON_DOWNLOADS ?= never
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup gpu-env demo test test-fast check format bench docs clean

help:            ## list what make can do
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP) $(WEB)  ## create .venv and the browser target's node_modules from their lock files

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
		{ echo "missing: python >= 3.11 and < 3.14 as '$(PYTHON)' (Debian: apt-get install python3); or: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "missing: pip (Debian: apt-get install python3-pip)"; exit 1; }
	@echo "setting up: uv"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .uv 'uv==0.13.8'

$(STAMP): $(UV) pyproject.toml uv.lock converters/tflite/onnx2tf.txt
	@echo "setting up: .venv from uv.lock (about a minute the first time)"
	@test -x $(BIN)/python || $(UV) venv --quiet --no-project --python $(PYTHON) $(VENV)
	@$(UV) sync --quiet --locked $(EXTRAS)
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check --root-user-action=ignore \
		--no-deps --ignore-requires-python --require-hashes -r converters/tflite/onnx2tf.txt
	@touch $@

$(WEB): converters/browser/package-lock.json
	@if ! command -v npm >/dev/null; then echo "no browser target: missing npm (Debian: apt-get install nodejs npm), then: make setup"; \
		elif ! (cd converters/browser && npm ci --ignore-scripts --no-audit --no-fund --silent); then echo "no browser target: npm ci failed"; \
		else touch $@; fi

# ONNX Runtime for the CPU and for the GPU are the same module, so that one environment cannot hold both.
gpu-env: $(UV)   ## create .venv-gpu, for a machine with an NVIDIA GPU; then: .venv-gpu/bin/python -m pytest -m hardware
	@UV_PROJECT_ENVIRONMENT=.venv-gpu $(UV) sync --quiet --locked --group gpu --extra onnxruntime-gpu --extra tensorrt-rtx

demo: $(STAMP)   ## run the main job on this machine; ARGS=--serve leaves the service running
	@$(BIN)/python -m examples.demo $(ARGS)

test: $(STAMP)   ## run every test; ARGS="tests/unit/signer -k replay" runs some
	@tests/install_servers.sh
	@$(MAKE) --silent $(WEB)
ifeq ($(strip $(ARGS)),)
	@$(BIN)/python -m pytest -n 2 $(PARALLEL)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(filter-out $(PARALLEL) tests/__pycache__,$(patsubst %/,%,$(wildcard tests/*/)))
else
	@$(BIN)/python -m pytest $(ARGS)
endif

check: $(STAMP)  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright

format: $(STAMP) ## format the code and sort its imports
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(STAMP)  ## SUITE=name runs benchmarks/suites/name.py; its last line is its verdict
	@test -n "$(SUITE)" || { echo "which suite? make bench SUITE=name, one of: $$(ls benchmarks/suites | grep -vE '^(_|test_)' | sed -n 's/\.py$$//p' | tr '\n' ' ')"; exit 2; }
ifeq ($(SUITE),microcontroller)
	@tests/install_servers.sh arm-none-eabi-gcc qemu-system-arm valgrind
else ifeq ($(SUITE),fleet)
	@tests/install_servers.sh mosquitto initdb
endif
	@$(BIN)/python -m benchmarks.suites.$(SUITE) $(ARGS)

docs: $(STAMP)   ## build the documentation site into site/
	$(BIN)/mkdocs build --strict --quiet

clean:           ## remove what make made
	rm -rf $(VENV) .venv-gpu $(WEB) .uv .cache site build dist
