# make demo and make test work on a fresh machine: they make .venv and install what is missing into it.
# PYTHON=python3.12 names the interpreter, VENV=path an environment to use instead of .venv.

SHELL := /bin/bash
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV ?= .venv
RUN := $(VENV)/bin/python
PACKAGING := setup.py pyproject.toml llamafactory_tpaw.pth llamafactory_tpaw.start
export PATH := $(abspath $(VENV))/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help venv demo test chromium lint docs bench real

help:
	@echo "make demo       play three iterations with a tiny model on the CPU, baselines beside it, and write a report"
	@echo "make test       run the whole test suite"
	@echo "make chromium   install Debian's Chromium where it is missing, for the tests of LlamaBoard's page"
	@echo "make bench      measure time and memory of training against other trainers"
	@echo "make real       play with a real model, real vLLM and other servers on the CPU, then on GSM8K (keeps 4 GB in .real)"
	@echo "make lint       check style and formatting"
	@echo "make docs       write docs/configuration.md and docs/commands.md from the help"

venv: $(VENV)/.tpaw-installed

demo: $(VENV)/.tpaw-installed
	@$(RUN) -m demo.run

test: $(VENV)/.tpaw-installed-dev
	@$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadscope --durations 40

# The tests find it on PATH, or by the variable CHROMIUM; they are skipped without it.
chromium:
	@test -n "$$CHROMIUM" || command -v chromium >/dev/null || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || { \
		echo "Chromium is missing and cannot be installed here. As root: apt-get install chromium" >&2; exit 1; }

bench: $(VENV)/.tpaw-installed
	@$(RUN) -m benchmarks.training
	@$(RUN) -m benchmarks.iteration

# REAL="--prompts 48" passes options on, GSM8K="--data FOLDER" those of the second part.
real: $(VENV)/.tpaw-installed-dev
	@$(RUN) -m benchmarks.real $(REAL)
	@$(RUN) -m benchmarks.gsm8k $(GSM8K)

lint: $(VENV)/.tpaw-installed-dev
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

docs: $(VENV)/.tpaw-installed
	@$(RUN) -m tools.configuration
	@$(RUN) -m tools.commands

# The environment is made here and not in a separate rule: an interrupted `venv` leaves a python without pip behind.
$(VENV)/.tpaw-installed: $(PACKAGING)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed and was not found. Name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --editable '.[eval]'
	@touch $@

# LlamaFactory 0.9.5 takes transformers up to 5.6.0, its main branch up to 5.8.0 without 5.6.0: tested is what both take.
$(VENV)/.tpaw-installed-dev: $(VENV)/.tpaw-installed
	DS_BUILD_OPS=0 $(RUN) -m pip install --editable '.[dev]' 'transformers<5.6'
	@touch $@
