# Two commands for newcomers: `make demo` and `make test`. CI calls `make check` and `make test`.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin

.PHONY: demo test drills s3-server test-cluster check format schema quality clean

demo: .venv/.installed  ## install, then run a whole job: about five minutes, stays up until Ctrl-C
	$(BIN)/orchestrator run jobs/language_modelling.yaml

test: .venv/.installed-dev s3-server  ## install what tests need, and run them
	$(BIN)/pytest

drills: .venv/.installed-dev s3-server  ## inject real faults and compare the results: about half an hour
	$(BIN)/pytest tests/drills

s3-server: .venv/s3/.installed  ## install the S3 server of tests, in an environment of its own

test-cluster: .venv/.installed-dev  ## three hosts on this machine: ten minutes, as root on Linux
	$(BIN)/pytest tests/cluster/test_on_prem.py  # `make test` has the tests of two hosts

check: .venv/.installed-dev  ## lint, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed-dev  ## fix what can be fixed automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: .venv/.installed  ## write the JSON schema of job files again
	$(BIN)/orchestrator schema > jobs/job.schema.json

bench-train: .venv/.installed-bench  ## compare training with torchrun, transformers and Lightning
	$(BIN)/python -m benchmarks.train

NANOGPT ?= nanoGPT
bench-time-to-loss: .venv/.installed-bench  ## compare with nanoGPT, whose checkout is NANOGPT=path
	$(BIN)/python -m benchmarks.time_to_loss --nanogpt $(NANOGPT)

bench-tune: .venv/.installed-bench  ## compare sweeps with nested trainers and with Optuna alone
	$(BIN)/python -m benchmarks.tune

bench-plan: .venv/.installed-bench  ## compare `orchestrator plan` with the trainings it predicts
	$(BIN)/python -m benchmarks.plan

bench-serve: .venv/.installed-bench  ## compare serving with transformers, CTranslate2, static batches
	$(BIN)/python -m benchmarks.serve

bench-predictions: .venv/.installed  ## predictions in shared batches against one by one
	$(BIN)/python -m benchmarks.predictions

bench-gpu: .venv/.installed-dev  ## the training loop alone on a GPU: tokens a second, MFU
	$(BIN)/python benchmarks/gpu.py

quality: .venv/.installed-dev  ## train every task on small public data sets: about two hours
	$(BIN)/python -m benchmarks.quality

clean:  ## remove the virtual environment and caches, never runs
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 or 3.12: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/bin/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	touch .venv/.installed $@

.venv/s3/.installed: .venv/bin/pip tests/s3_requirements.txt
	$(PYTHON) -m venv .venv/s3
	.venv/s3/bin/pip install --quiet $(PIP_ARGS) --requirement tests/s3_requirements.txt
	touch $@

.venv/.installed-bench: .venv/bin/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[bench]'
	touch .venv/.installed $@
