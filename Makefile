# Two commands to know: `make chat` talks to the embedded model, `make test` proves the project.
# The rest are listed by `make`. Set-up happens once and again only when pyproject.toml or constraints.txt change.

VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PROMPT ?=
ARGS ?=

cores := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
JOBS ?= $(shell [ $(cores) -gt 8 ] && echo 8 || echo $(cores))

python := $(VENV)/bin/python
pins := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
pip := $(python) -m pip install -qq --disable-pip-version-check $(pins)

# The prompt reaches the shell as an environment variable, untouched: quotes and dollars in it are text.
export ZAMBA_PROMPT := $(value PROMPT)

.DEFAULT_GOAL := help
.PHONY: help chat test check format bench test-gpu clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | awk -F '\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'
	@echo "  variables: PROMPT='...' VENV=$(VENV) CONSTRAINTS=$(CONSTRAINTS) JOBS=$(JOBS) ARGS='...'"

chat: $(VENV)/.ready ## talk to the embedded model (PROMPT="..." answers once and exits)
ifeq ($(value PROMPT),)
	@$(VENV)/bin/zamba-lm chat $(ARGS)
else
	@$(VENV)/bin/zamba-lm chat --prompt="$$ZAMBA_PROMPT" $(ARGS)
endif

# Tests start Python often: each start finds the bytecode that the first one left.
test: $(VENV)/.ready-dev ## run the tests that need no GPU (ARGS="tests/text -k emoji" narrows them)
	env -u PYTHONDONTWRITEBYTECODE $(python) -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

check: $(VENV)/.ready-dev ## lint everything, check the types of model/ and engine/
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.ready-dev ## rewrite the code the way `make check` wants it
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.ready-dev ## measure speed and memory on this CPU beside transformers (ARGS="zamba2-2.7b --write")
	$(python) benchmarks/cpu.py $(ARGS)

test-gpu: $(VENV)/.ready-dev ## run the GPU tests and file the outcome under benchmarks/results/
	$(python) -m tests.gpu_record $(ARGS)

clean: ## remove the environment and every cache
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. A stamp file remembers what was installed, so that the second call starts at once.

$(python):
	@for p in python3 python3.13 python3.12 python3.11; do \
	  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "creating $(VENV) with $$($$p --version)"; \
	    $$p -m venv $(VENV) && exit 0; rm -rf $(VENV); exit 1; \
	  fi; \
	done; \
	echo "error: zamba-lm needs Python 3.11 or newer; python3 here is '$$(python3 --version 2>&1)'. Install one and run make again." >&2; exit 1

$(VENV)/.ready: pyproject.toml $(wildcard $(CONSTRAINTS)) | $(python)
	@echo "installing zamba-lm into $(VENV) (torch is the large part; once only)"
	@$(pip) -e .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml $(wildcard $(CONSTRAINTS)) | $(python)
	@echo "installing zamba-lm with its development tools into $(VENV) (once only)"
	@$(pip) -e ".[dev]"
	@touch $@ $(VENV)/.ready
