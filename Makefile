# make demo | up | down | status | test | unit | pythons | soak | kill-matrix | lint | clean
#
# Needs Python 3.11, 3.12 or 3.13 (with venv) and make; everything else is installed below this folder.
# Another Python: make demo PYTHON=/usr/bin/python3.12

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

# Not the Markdown, whose examples are laid out for the eye.
SOURCES := airflow_batchwrap benchmarks dags tests

# The Pythons that `make pythons` has passed on; pyproject.toml says the same.
SUPPORTED := 3.11 3.12 3.13
NEWEST := $(lastword $(SUPPORTED))
comma := ,
NAMES := $(subst $() ,$(comma) ,$(SUPPORTED))

# Without PYTHON=... the first of these that is supported is taken.
PYTHON ?=
CANDIDATES := python3 python3.13 python3.12 python3.11 python

.PHONY: help demo up down status test unit pythons soak kill-matrix lint clean

help:
	@echo 'make demo    run the quickstart on a real Airflow with local services, then stop everything'
	@echo 'make up      start all of it and leave it running; make status tells what runs, make down stops it'
	@echo 'make test    lint, types, layers and the whole test suite'
	@echo 'make unit    the tests that start no service: less than a minute'
	@echo 'make pythons make test on Python $(NAMES), one after the other: what it came to on each'
	@echo 'make soak    the long tests, which make test leaves out: an hour on two cores; SOAK_RUNS=40 for less'
	@echo 'make kill-matrix  kill workers, triggerer, scheduler and service at each point of a step'
	@echo 'make lint    what make test does before the test suite'
	@echo 'make clean   stop what runs and remove what was installed and started here'

demo: $(STAMP)
	@$(BIN)/batchwrap demo $(ARGS)

up: $(STAMP)
	@$(BIN)/batchwrap up $(ARGS)

# Neither needs anything installed that is not: without it nothing runs.
down status:
	@if [ -x $(BIN)/batchwrap ]; then $(BIN)/batchwrap $@ $(ARGS); else echo 'Nothing runs.'; fi

# Three at a time, file by file: most tests wait for services and processes.
test: lint
	$(BIN)/python -m pytest --numprocesses=3 --dist=loadfile $(ARGS)

unit: $(STAMP)
	$(BIN)/python -m pytest tests/unit --numprocesses=2 --dist=loadfile $(ARGS)

# Each in an environment of its own below .pythons, beside the log of its run.
pythons: $(STAMP)
	@$(BIN)/python -m tests.support.pythons $(SUPPORTED)

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak -rP $(ARGS)

# One process: the deaths meet the cells of one Airflow side by side.
kill-matrix: $(STAMP)
	$(BIN)/python -m pytest -m kills tests/kills $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	@if [ -x $(BIN)/batchwrap ]; then $(BIN)/batchwrap down; fi
	@if [ -d .batchwrap ]; then chmod -R u+rwX .batchwrap; fi
	rm -rf $(VENV) .pythons .cache .batchwrap build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# One environment for everything, made again when what it is made from changes. --upgrade-deps: the pip that comes with
# Python 3.11 takes three minutes for what a recent one does in one.
#
# A Python that is named is looked at again, since the environment may be another one's.
$(STAMP): pyproject.toml constraints.txt $(if $(PYTHON),named)
	@set -e; \
	python=; found=; \
	for each in $(if $(PYTHON),"$(PYTHON)",$(CANDIDATES)); do \
	    version=$$("$$each" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	    found="$$found $$each is $$version;"; \
	    case " $(SUPPORTED) " in *" $$version "*) python="$$each"; break;; esac; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "airflow-batchwrap runs on Python $(NAMES). Found:$${found:- none of them ($(if $(PYTHON),$(PYTHON),$(CANDIDATES))).}" >&2; \
	    echo "Install one (for instance: uv python install $(NEWEST)), or name it: make demo PYTHON=/path/to/python$(NEWEST)" >&2; \
	    exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$$python ($$version) has no venv module. On Debian and Ubuntu: apt-get install python$$version-venv" >&2; exit 1; \
	fi; \
	mkdir -p .cache; \
	"$$python" -c "$$HOLD" $(MAKE) venv PYTHON="$$python" FITS="$(if $(PYTHON),$$version,$(SUPPORTED))"

.PHONY: named
named:

# Two of these at once would spoil each other's work: the second waits, and finds it done.
export HOLD := import fcntl, os, sys; \
    lock = os.open(".cache/install.lock", os.O_CREAT | os.O_RDWR, 0o600); \
    fcntl.flock(lock, fcntl.LOCK_EX); \
    os.set_inheritable(lock, True); \
    os.execvp(sys.argv[1], sys.argv[1:])

.PHONY: venv
venv:
	@set -e; \
	has=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || has=; \
	case " $(FITS) " in *" $$has "*) ;; *) has=;; esac; \
	if [ -n "$$has" ] && [ $(STAMP) -nt pyproject.toml ] && [ $(STAMP) -nt constraints.txt ]; then exit 0; fi; \
	echo "Installing airflow-batchwrap and its dependencies into $(VENV) (once; one to two minutes) ..."; \
	export PIP_QUIET=2 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore; \
	if [ -z "$$has" ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    "$(PYTHON)" -m venv --clear --upgrade-deps $(VENV) || "$(PYTHON)" -m venv --clear $(VENV); \
	fi; \
	$(BIN)/python -m pip install -c constraints.txt -e '.[local,test]'; \
	touch $(STAMP)
