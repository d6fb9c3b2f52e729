# make quickstart   sets everything up, then runs the main job
# make test         sets everything up, then passes the tests
# make test-sweeps  whole sweeps on Ray, killed and started again: minutes
# make test-full-size  one adversarial step of every full-size model at 224 x 224: minutes, 4 GB
# make test-cuda    on a machine with a GPU: the same promises there
# make test-faults  kills workers and drivers, fills disks, damages files: minutes, on 2 cores
# PIP_ARGS passes options to pip, such as an index with CPU builds of torch.

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
BENCH := .venv-bench/bin
BENCH_ARGS ?=

.PHONY: quickstart test test-sweeps test-faults test-full-size test-cuda check ui clean
.PHONY: bench-attack bench-fanout bench-models bench-train bench-data

quickstart: .venv/run.done
	$(BIN)/s3ta run experiments/quickstart.yaml

test: .venv/dev.done
	$(BIN)/python -m pytest -n 2 --dist loadgroup --durations=10

test-sweeps: .venv/dev.done
	$(BIN)/python -m pytest -m sweeps

# On two of foolbox's photos, which are in the benchmarks' environment.
test-full-size: .venv/dev.done .venv-bench/done
	$(BENCH)/python -m pytest -m full_size -s tests/end_to_end/test_full_size.py

# On a machine with a GPU.
test-cuda: .venv/dev.done
	S3TA_TEST_DEVICE=cuda $(BIN)/python -m pytest -m 'cuda or not cuda' \
		tests/science/test_on_cuda.py tests/science/test_every_attack.py
	S3TA_TEST_DEVICE=cuda $(BIN)/python -m pytest -m full_size -s tests/end_to_end/test_full_size.py

test-faults: .venv/dev.done
	$(BIN)/python -m pytest -m faults tests/faults --durations=20

check: .venv/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: .venv/run.done
	$(BIN)/s3ta ui

# How fast attacks are beside other tools; BENCH_ARGS="--quick" only sees that it works.
bench-attack: .venv-bench/done
	$(BENCH)/python tests/benchmarks/bench_attack.py $(BENCH_ARGS)
	$(BENCH)/python tests/benchmarks/bench_spsa.py $(BENCH_ARGS)

# What the fan-out costs beside the work.
bench-fanout: .venv/dev.done
	$(BIN)/python tests/benchmarks/bench_fanout.py $(BENCH_ARGS)

# Forward pass, PGD step and update of each small model.
bench-models: .venv/dev.done
	$(BIN)/python tests/benchmarks/bench_models.py $(BENCH_ARGS)

# A training step beside its parts, a plain loop, a second worker, and sums that don't overlap.
bench-train: .venv/dev.done
	$(BIN)/python tests/benchmarks/bench_train.py $(BENCH_ARGS)

# Reading, cropping and colouring photos beside bare decoding; the photos come with foolbox.
bench-data: .venv-bench/done
	$(BENCH)/python tests/benchmarks/bench_data.py $(BENCH_ARGS)

clean:
	rm -rf .venv .venv-bench build *.egg-info

.venv/run.done: constraints.txt pyproject.toml
	sh infra/check-python.sh $(PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e .
	touch $@

.venv/dev.done: .venv/run.done
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

# Sees all that .venv holds, and has the other tools beside it; their old pins are left out.
.venv-bench/done: .venv/run.done
	$(BIN)/python -m venv --clear .venv-bench
	$(BENCH)/python -m pip install --quiet $(PIP_ARGS) --no-deps \
		torchattacks==3.5.1 foolbox==3.3.4 eagerpy==0.30.0
	$(BIN)/python -c "import sysconfig as s; \
		print('import site; site.addsitedir(%r)' % s.get_path('purelib'))" \
		> .venv-bench/s3ta.pth
	mv .venv-bench/s3ta.pth .venv-bench/lib/python3*/site-packages/
	touch $@
