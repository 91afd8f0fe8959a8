# Every target works on a fresh machine with Python 3.11 and make: bootstrap.py sets .venv up on first use.
PYTHON ?= $(shell command -v python3.11 || echo python3)
RUN := @$(PYTHON) bootstrap.py
WHEELS ?= wheels

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint types size constraints licences wheelhouse

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: ## train a mortality model on 208 simulated ICU hospitals
	$(RUN) fedray run

test: test-fast ## run all tests (data tests need FEDRAY_DATA)
	$(RUN) pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "ray or slow or cluster"

test-fast: ## run the tests that need neither Ray nor much time, in two processes
	$(RUN) pytest -q -n 2 --dist worksteal -m "not ray and not slow and not cluster"

lint: ## check style, banned calls and unused code
	$(RUN) ruff check .

types: ## check types, strictly in core, passes and runtime
	$(RUN) mypy

size: ## print the lines of each file against the budget
	$(RUN) python experiments/tools/size.py

constraints: ## resolve all extras again into constraints.txt
	@env -u UV_FIND_LINKS $(PYTHON) bootstrap.py uv pip compile -q --python-version 3.11 --no-annotate --no-header \
		--all-extras pyproject.toml -o constraints.txt

licences: ## write THIRD_PARTY_LICENSES.md from what is installed
	$(RUN) python experiments/tools/licences.py

wheelhouse: ## fill wheels/ for FEDRAY_WHEELS=wheels make demo, without a network
	$(RUN) pip wheel -q -w $(WHEELS) -c constraints.txt ".[dev]" uv "setuptools>=77"
