# What a newcomer and the checks run; `make help` lists it. Needs make and Python 3.11 or 3.12, takes uv where it is there.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED = $(VENV)/installed-$(EXTRAS)
HOROVOD := $(VENV)/horovod-built
DEMO := runs/demo

# `make venv EXTRAS=gpu,test` installs other extras of setup.cfg too; a change of them installs anew.
EXTRAS ?= test

# The first of these that runs and is 3.11 or 3.12 is taken; `make venv PYTHON=/path/to/python3.12` names another.
PYTHON ?= python3.11 python3.12 python3 python
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)
# Debian's Python comes without ensurepip, and so cannot make an environment, until python3-venv is installed.
PROBE := import sys; assert (3, 11) <= sys.version_info < (3, 13) $(if $(UV),,; import ensurepip)

# Two processes, a file or class of tests at a time: what it builds once is shared by its tests.
WORKERS ?= -n 2 --dist loadscope

.PHONY: help venv horovod demo test fast thorough lint format lock clean

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

venv: $(INSTALLED) ## make .venv and install the package in it, with the versions of constraints.txt

horovod: $(HOROVOD) ## build Horovod in .venv, with NCCL and MPI where they are (minutes; needs g++)

demo: $(INSTALLED) ## train on the built-in synthetic cells and write a report (minutes)
	$(BIN)/bloodcell-dist train --config configs/demo.yaml --run-dir $(DEMO)
	@echo "The report: $(DEMO)/report.html"

# In two parts: by its end the first has filled its processes with 5 GB each, which the second needs.
test: lint $(HOROVOD) ## all checks and all tests, those under real processes too
	$(BIN)/python -m pytest $(WORKERS) tests/unit tests/gpu
	$(BIN)/python -m pytest $(WORKERS) tests/multiprocess tests/runs tests/slurm

fast: $(INSTALLED) ## the tests that take seconds
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not multiprocess and not slurm and not gpu"

thorough: $(HOROVOD) ## what `make test` leaves out: longer tests of the same (some 30 min)
	$(BIN)/python -m pytest -m thorough

.PHONY: gpu-check
gpu-check: ## test and measure on this machine's GPUs (minutes; ARGS="--time-limit-s 540" and others)
	$(MAKE) venv EXTRAS=gpu,test
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff format the code and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## renew constraints.txt from setup.cfg, for Python 3.11 and 3.12 and all extras (needs uv)
	uv pip compile setup.cfg --all-extras --universal --python-version 3.11 --fork-strategy fewest --upgrade \
	    --no-annotate --custom-compile-command "make lock" --output-file constraints.txt

clean: ## remove all that make made, except runs/
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
	    rm -rf $(VENV); \
	    for python in $(PYTHON); do \
	        found=$$($$python -c '$(PROBE); print(sys.executable)' 2>/dev/null) && break; \
	    done; \
	    if [ -n "$(UV)" ]; then uv venv --python "$${found:-3.11}" $(VENV); \
	    elif [ -n "$$found" ]; then "$$found" -m venv $(VENV); \
	    else echo "No Python 3.11 or 3.12 with its venv module among: $(PYTHON)." >&2; \
	        echo "Install one (Debian: python3 and python3-venv), or uv, or name one: make venv PYTHON=/path/to/python3.12" >&2; \
	        exit 1; fi; \
	fi
	$(if $(UV),uv pip install --compile-bytecode --python $(BIN)/python,$(BIN)/python -m pip install) \
	    -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# After every installation, which may have changed TensorFlow: the script knows whether there is something to do.
# Horovod's build reads MAKEFLAGS, and this make's are not meant for it.
$(HOROVOD): $(INSTALLED) scripts/install_horovod.sh
	MAKEFLAGS= scripts/install_horovod.sh $(BIN)/python
	@touch $@
