# make demo: a language model learns on a local Ray cluster.   make test: everything CI runs.
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs
JOBS ?= auto
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-fast test-slow test-cluster test-vllm soak lint format clean

$(VENV)/.braid-installed: pyproject.toml deploy/install.sh deploy/requirements-cpu.txt
	deploy/install.sh $(VENV)

install: $(VENV)/.braid-installed

demo: install
	$(BIN)/braid fetch-model smollm2-135m
	$(BIN)/braid train arithmetic_demo --runs $(RUNS)

test: install lint test-fast test-slow test-cluster test-vllm

# Tier 1: pure and in-process, no Ray; JOBS processes side by side.
test-fast: install
	$(BIN)/braid fetch-model tiny
	$(PYTEST) -q -n $(JOBS) --dist worksteal

# The rest of tier 1: recipes whose machinery others run already, and what takes longer than ten seconds.
test-slow: install
	$(BIN)/braid fetch-model tiny
	$(PYTEST) -q -n $(JOBS) --dist worksteal -m "slow and not cluster and not vllm and not gpu and not soak"

# Tier 2: the real Ray graph with simulated engines.
test-cluster: install
	$(PYTEST) -q -m "cluster and not vllm and not gpu and not soak"

# Tier 3: real vLLM on the CPU, alone and in the Ray graph.
test-vllm: install
	$(PYTEST) -q -m "vllm and not gpu and not soak"

# Hostile programs and kills by the thousand, from BRAID_SEED on; not part of `make test`.
soak: install
	$(PYTEST) -q -s -m soak

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(RUNS) .pytest_cache .hypothesis .ruff_cache
