# One front door, for people and CI alike. `make demo` and `make test` set up everything they need.
PYTHON ?= python3
VENV   ?= .venv
STORE  ?= store
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: setup demo test test-ray test-others test-slow test-gpu lint format bench bench-gpu chaos results schema ui clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than Python 3.11: give PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/targetsweep run sweeps/demo.yaml --store $(STORE)

# Both at once: the tests that start Ray mostly wait. Ray takes every core for itself, so they run one
# at a time; it would run what it starts at niceness 15, which beside other tests hardly moves.
test: $(READY)
	@$(MAKE) --no-print-directory --jobs 2 test-ray test-others

test-ray: $(READY)
	RAY_worker_niceness=0 $(BIN)/python -m pytest -m "ray and not slow and not gpu" $$(grep -l mark.ray tests/test_*.py)

# By file, so that what a file's tests share is made once.
test-others: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not ray"

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/plan_scale.py --json benchmarks/results/plan_scale.json
	$(BIN)/python benchmarks/report_scale.py --json benchmarks/results/report_scale.json
	$(BIN)/python benchmarks/schedule_sim.py --json benchmarks/results/schedule_sim.json
	$(BIN)/python benchmarks/mixed_runs.py --json benchmarks/results/mixed_runs.json
	$(BIN)/python benchmarks/long_sweep.py --json benchmarks/results/long_sweep.json
	$(BIN)/python benchmarks/cold_start.py --json benchmarks/results/cold_start.json
	$(BIN)/python benchmarks/sweep_efficiency.py --json benchmarks/results/sweep_efficiency.json
	$(BIN)/python benchmarks/checkpointing.py --batch 16 --steps 40 --interval 5 --json benchmarks/results/checkpointing.json
	$(BIN)/python benchmarks/teacher_validation.py --json benchmarks/results/teacher_validation.json
	$(BIN)/python benchmarks/image_input.py --json benchmarks/results/image_input.json
	$(BIN)/python benchmarks/small_convolutions.py --json benchmarks/results/small_convolutions.json
	$(BIN)/python benchmarks/influence.py --cost --json benchmarks/results/influence.json
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python benchmarks/step.py --width 8 --steps 8 --rounds 9 --precision fp32 bf16 --json benchmarks/results/step.json

# All that only a GPU can tell, within a time box (docs/performance.md).
bench-gpu: $(READY)
	$(BIN)/python benchmarks/gpu_session.py --out benchmarks/results/gpu --minutes 25

# Faults at random moments, within a time box: 100 and more of them (docs/operations.md).
chaos: $(READY)
	$(BIN)/python -m tests.chaos --seed 0 --minutes 60 --json benchmarks/results/chaos.json

# docs/results.md, from what the bundles in this repository have measured.
results: $(READY)
	$(BIN)/targetsweep results benchmarks/results/paper/* --out docs/results.md

schema: $(READY)
	$(BIN)/targetsweep schema > sweeps/schema.json

ui: $(READY)
	$(BIN)/targetsweep ui --store $(STORE)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
