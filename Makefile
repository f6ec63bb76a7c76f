# `make demo` and `make test` are all a newcomer needs; each makes .venv first if it is not there.
# Needs: Python 3.11 and make.

PYTHON ?= python3.11
BIN := .venv/bin
TESTS ?=

.PHONY: install demo test check dev bench clean lock
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo    a simulated batch from table to report, no keys needed"
	@echo "make test    the tests (TESTS=path to run some)"
	@echo "make check   formatting, lint, types, import rules, Dagster definitions"
	@echo "make dev     the Dagster UI on http://127.0.0.1:3000"
	@echo "make bench   engine and peers against the simulator: speed, limits, crash, memory, cost"
	@echo "make lock    resolve requirements.lock anew from pyproject.toml"
	@echo "make clean   remove .venv and caches (data/ stays)"

install: .venv/.installed

# hashes are checked for every wheel; the project itself is installed in place
.venv/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: install
	$(BIN)/batch-pipeline demo

# The tests' SQLite files lie in memory where there is room: each commit would wait for the disk.
# Bytecode is written even where the environment forbids it: a test starts hundreds of processes.
test: install
	@room=$$(df -Pm /dev/shm 2>/dev/null | awk 'NR == 2 { print $$4 }'); \
	if [ "$${room:-0}" -gt 4000 ]; then \
		scratch=$$(mktemp -d /dev/shm/bp-tests-XXXXXX); trap 'rm -rf "$$scratch"' EXIT INT TERM; \
	fi; \
	unset PYTHONDONTWRITEBYTECODE; \
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q \
		$${scratch:+--basetemp="$$scratch/t"} $(TESTS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/dg check defs

dev: install
	$(BIN)/dagster dev

bench: install
	$(BIN)/python -m benchmarks

lock:
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --universal \
		--generate-hashes --no-emit-index-url --no-header --no-strip-extras -q -o requirements.lock
	@# spelled as justext asks for it: to the pip of Python 3.11, two spellings are two extras
	sed -i.bak 's/^lxml\[html-clean\]/lxml[html_clean]/' requirements.lock && rm requirements.lock.bak

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
