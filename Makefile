# `make` prints what there is to make. Every path below is relative, so that the folder may have
# any name; nothing needs an activated environment.

PROFILE  ?= quick
NOTEBOOK ?=
DATASET  ?=
DEVICE   ?=
CLUSTER  ?=
FORCE    ?=
JOBS     ?=
FOR      ?=
MINUTES  ?=
ARGS     ?=
PYTHON   ?=

PROFILES := smoke quick full paper
ifneq ($(words $(PROFILE)) $(filter $(PROFILES),$(PROFILE)),1 $(strip $(PROFILE)))
$(error PROFILE is '$(PROFILE)'; expected one of: $(PROFILES))
endif

# The kernels' own settings (quiet, no history), in place of the user's.
IN_VENV := IPYTHONDIR="$$PWD/.ipython" .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup figures run paper test test-slow test-notebooks lab html data bench rented clean

help: ## print this
	@echo 'Usage: make TARGET [VARIABLE=value ...]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  PROFILE=quick    scale of figures and lab: $(PROFILES)'
	@echo '  NOTEBOOK="04 05" only these notebooks (default: all)'
	@echo '  DATASET=mnist    a data set in place of a notebook'\''s own (auto: what is there), or to fetch'
	@echo '  DEVICE=cpu       cpu, cuda or auto'
	@echo '  CLUSTER=local    spread runs over processes, or tcp://... for a Dask scheduler'
	@echo '  FORCE=1          run also the notebooks that are up to date'
	@echo '  JOBS=2           notebooks, or test workers, at once (default: as many as cores)'
	@echo '  FOR=9m           of run and paper: stop then (status 75); the same command goes on'
	@echo '  MINUTES=30       of rented: how long in all'
	@echo '  ARGS="-k cli"    more arguments for pytest (test) or the benchmarks (bench)'
	@echo '  PYTHON=python3   the interpreter (3.11 or newer) from which .venv is made'

# Nothing but a comparison once .venv is made from this lock, in this folder (an editable install
# remembers where it was). The stamp is written last; a .venv without one was interrupted and is
# made anew, one with an older lock's is brought up to date.
setup: ## make or renew .venv from requirements.lock; every other target does it when needed
	@set -eu; \
	stamp() { pwd; cat requirements.lock; }; \
	if test -x .venv/bin/python && stamp | cmp -s - .venv/stamp; then exit 0; fi; \
	echo 'Setting up .venv from requirements.lock: some minutes, once.'; \
	if ! test -f .venv/stamp || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
	    for python in $(if $(PYTHON),'$(PYTHON)',python3.11 python3); do \
	        if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	        then found=$$python; break; fi; \
	    done; \
	    if test -z "$${found:-}"; then \
	        echo "make: Python 3.11 or newer is needed, and '$$python' is not it:" \
	            'name one with PYTHON=/path/to/python3.11' >&2; \
	        exit 1; \
	    fi; \
	    "$$found" -m venv --clear .venv; \
	fi; \
	rm -f .venv/stamp; \
	.venv/bin/python -m pip install --disable-pip-version-check -r requirements.lock; \
	.venv/bin/python -m pip install --disable-pip-version-check --quiet \
	    --no-deps --no-build-isolation -e .; \
	stamp > .venv/stamp.new; \
	mv .venv/stamp.new .venv/stamp

PARAMETERS = $(if $(DATASET), --dataset '$(DATASET)')$(if $(DEVICE), --device '$(DEVICE)')$(if \
$(CLUSTER), --cluster '$(CLUSTER)')
FIGURES = $(if $(NOTEBOOK), --only $(NOTEBOOK))$(PARAMETERS)$(if $(JOBS), --jobs '$(JOBS)')$(if \
$(filter-out 0,$(FORCE)), --force)
RUN = $(if $(NOTEBOOK), $(NOTEBOOK))$(PARAMETERS)$(if $(FOR), --for '$(FOR)')

figures: setup ## run the notebooks: figures, numbers and claims, into figures/PROFILE
	@$(IN_VENV) -m replication figures --profile $(PROFILE)$(FIGURES)

run: setup ## train and measure what the notebooks show, without Jupyter; FOR=9m stops it then
	@.venv/bin/python -m replication run$(RUN) --profile $(PROFILE)

paper: setup ## as run, then figures, at the papers' scale
	@.venv/bin/python -m replication run$(RUN) --profile paper
	@$(IN_VENV) -m replication figures --profile paper$(FIGURES)

# One thread a worker: two that share a core wait for each other.
PYTEST = OMP_NUM_THREADS=1 REPLICATION_PROFILE=smoke $(IN_VENV) -m pytest \
    -n $(or $(JOBS),auto) --dist loadfile

test: setup ## ruff, mypy, then unit and property tests, all but the slow ones
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m ruff format --check .
	@.venv/bin/python -m mypy
	@$(PYTEST) tests -m "not slow" $(ARGS)

test-slow: setup ## tests that start kernels and clusters, kill processes and fill disks
	@$(PYTEST) tests -m slow $(ARGS)

test-notebooks: setup ## run every notebook at smoke; compare the cells tagged nbval-check-output
	@$(PYTEST) notebooks --nbval-lax --nbval-current-env \
	    --nbval-sanitize-with tests/nbval_sanitize.cfg $(ARGS)

lab: setup ## open JupyterLab on notebooks/
	@REPLICATION_PROFILE=$(PROFILE) $(IN_VENV) -m jupyterlab notebooks

html: setup ## the executed notebooks, the scorecard and the API as a website, into site/
	@.venv/bin/python -m sphinx -q docs site

data: setup ## list the data sets and where each was found; DATASET=name fetches one
	@.venv/bin/python -m replication data $(DATASET)

bench: setup ## time the numerics side by side with peers
	@.venv/bin/python -m benchmarks $(ARGS)

rented: setup ## what a rented GPU is wanted for, within MINUTES=30, into data/rented
	@.venv/bin/python -m benchmarks rented --minutes $(or $(MINUTES),30) $(ARGS)

clean: ## remove figures/smoke, figures/quick, site/ and caches; .venv, data/, other figures stay
	rm -rf figures/smoke figures/quick site
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name .venv -prune -o -path ./data -prune -o \
	    '(' -name __pycache__ -o -name .ipynb_checkpoints ')' -prune -exec rm -rf {} +
