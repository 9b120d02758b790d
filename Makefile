# Each target sets up what it needs in .venv; no environment has to be activated. `make` alone lists the targets.
#
#   OUT=folder        where results go (default: $CTVLM_OUT, else out)
#   JOBS=2            notebooks at a time in make run, each on its own; 1 where memory is below 5 GB
#   ARGS="..."        passed on: make run ARGS="--only 30", make test ARGS="-k contour"
#   PIP_ARGS="..."    passed to every pip call, the download of the images included: make run PIP_ARGS="--index-url ..."
#   PYTHON=python3.12 the interpreter that .venv is made with (3.11 or 3.12)
#   VENV=folder       another place for the environment, without spaces

VENV ?= .venv
JOBS ?= 2
OUT ?= $(or $(CTVLM_OUT),out)
ARGS ?=
PIP_ARGS ?=

# The first interpreter that is 3.11 or 3.12. Looked for only when .venv is made.
supported = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for name in python3.11 python3.12 python3 python; do \
	"$$name" -c '$(supported)' 2>/dev/null && echo "$$name" && break; done)

bin = $(VENV)/bin
installed = $(VENV)/.installed

# Notebooks run in their own folder, so the output folder is handed to them as an absolute path.
in_out = mkdir -p "$(OUT)" && CTVLM_OUT="$$(cd "$(OUT)" && pwd)"

ifneq ($(PIP_ARGS),)
export CTVLM_PIP_ARGS := $(PIP_ARGS)
endif

.DEFAULT_GOAL := help
.PHONY: help run test lab app bench fuzz kill notebooks lint clean

help:
	@echo "make run        run the whole workbook and write the report page, in $(OUT)"
	@echo "make test       run the tests, then the marked cells of every notebook on what make run left"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make app        open the explorer in a browser"
	@echo "make bench      time what has a promised speed"
	@echo "make fuzz       give 5,400 damaged files to the readers, in at most ten minutes"
	@echo "make kill       kill ctvlm run at fifty random moments, and see that it ends with the same tables"
	@echo "make notebooks  run the workbook and store the executed notebooks that changed"
	@echo "make lint       check the style of the code"
	@echo "make clean      remove .venv and out (the downloaded images stay in the cache)"

# setuptools is installed first, so that the package is built with the pinned one and not with the newest.
$(installed): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or 3.12 is needed and none was found on the PATH;" \
		"install one or name it: make run PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c '$(supported)' || { echo "make: $(PYTHON) is not Python 3.11 or 3.12; name one:" \
		"make run PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(bin)/python" -c 'import pip; $(supported)' 2>/dev/null || "$(PYTHON)" -m venv --clear "$(VENV)"
	"$(bin)/python" -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt setuptools
	"$(bin)/python" -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt --no-build-isolation -e '.[test]'
	@touch "$@"

run: $(installed)
	"$(bin)/ctvlm" run --jobs $(JOBS) --out "$(OUT)" $(ARGS)

# Both parts run even if the first one fails, so that one call shows everything. Two test files run at a time;
# ARGS="-n 0" runs one, as a debugger needs it. Of notebooks two as well, each in its own kernel from top to bottom. Each
# with one thread: two that compute with all cores wait for each other most of the time.
test: export OMP_NUM_THREADS ?= 1
test: $(installed)
	@status=0; \
	$(in_out) "$(bin)/python" -m pytest -n 2 --dist loadfile $(ARGS) || status=$$?; \
	$(in_out) "$(bin)/python" -m pytest -n 2 --dist loadscope --nbval-lax --nbval-current-env \
		--nbval-cell-timeout=600 notebooks || status=$$?; \
	exit $$status

lab: $(installed)
	$(in_out) "$(bin)/jupyter" lab --notebook-dir=notebooks $(ARGS)

app: $(installed)
	$(in_out) "$(bin)/ctvlm" app $(ARGS)

# pyproject.toml leaves the benchmarks out of `make test`; here that option is taken back.
bench: $(installed)
	"$(bin)/python" -m pytest -o addopts=--strict-markers --benchmark-only tests/benchmarks $(ARGS)

# One case again, with its stack: make fuzz ARGS="--replay 'volume.load:12' --seed 0"
fuzz: $(installed)
	$(in_out) PYTHONPATH=tests "$(bin)/python" -m fuzz $(ARGS)

# ARGS="--only 00,10 --moments 10": real notebooks instead of a miniature workbook
kill: $(installed)
	"$(bin)/python" tests/fuzz/kill_run.py $(ARGS)

notebooks: $(installed)
	"$(bin)/ctvlm" run --out "$(OUT)" --store $(ARGS)

lint: $(installed)
	"$(bin)/ruff" check .

# Only the default folders: a folder named on the command line may hold other things. Never the cache.
clean:
	@echo "removing .venv, out and the tools' caches; downloaded images stay in the cache"
	rm -rf .venv out ctvlm.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
