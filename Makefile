# Every target sets up what it needs: Python 3.11 or newer and make are enough. `make help` lists them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: help demo up test e2e matrix constraints bench lint format docs screenshots clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Run the example DAGs on this machine; their clips are in demo-output/
	@$(RUN) -m demo run

up: $(INSTALLED) ## Start Airflow with its UI, wired to an emulator and an S3, until Ctrl-C
	@$(RUN) -m demo up

# Two workers, each with an Airflow of its own: they would lock each other out of one SQLite file.
WORKERS := --dist worksteal $(foreach n,1 2,--tx 'popen//env:AIRFLOW_HOME=$(CURDIR)/.airflow/test-$(n)')

test: $(INSTALLED) ## Run the tests; ARGS goes to pytest, as in ARGS="-n0 -x -k ledger"
	@rm -rf .airflow/test-*
	$(RUN) -m pytest $(WORKERS) $(ARGS)

e2e: $(INSTALLED) ## Run the tests that start a whole Airflow and kill parts of it; ARGS goes to pytest
	$(RUN) -m pytest -n0 --timeout 1800 -m e2e tests/test_end_to_end.py tests/test_distributed.py $(ARGS)

matrix: ## Run the tests on every Airflow and Python; CELLS chooses, as in CELLS="2.11-3.11 3.3-3.13 lowest"
	@$(PYTHON) tools/matrix.py run $(if $(QUICK),--quick) $(if $(CORE),--core) --pytest='$(ARGS)' $(CELLS)

constraints: ## Renew what the matrix installs; CELLS chooses
	@$(PYTHON) tools/matrix.py constraints $(CELLS)

bench: $(INSTALLED) ## Measure beside peers: import, transfer, triggerer, a whole Airflow
	$(RUN) -m benchmarks $(ARGS)

lint: $(INSTALLED) ## Check style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy airflow_provider_codegateway benchmarks demo example_dags tests tools

format: $(INSTALLED) ## Fix style and format
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# From nothing each time: a page that is not read again would not be checked again.
docs: $(INSTALLED) ## Build the site of the documentation in build/docs, links checked; LINKS=1: those to elsewhere, too
	@rm -rf build/docs
	$(RUN) -m sphinx --fail-on-warning --keep-going --nitpicky --quiet -c docs . build/docs
	$(if $(LINKS),$(RUN) -m sphinx --fail-on-warning --quiet -b linkcheck -c docs . build/docs/links)

screenshots: $(INSTALLED) ## Take the documentation's pictures anew, of a running Airflow; needs Chromium
	@$(RUN) -m tools.screenshots

clean: ## Remove everything that was made, the virtual environment too
	rm -rf $(VENV) .matrix .airflow demo-output build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Python 3.11 or newer is needed. Name one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@echo 'Setting up $(VENV) with Airflow and all else: some minutes, once.'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip --disable-pip-version-check install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@
