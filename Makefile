# make quickstart   sets everything up, then runs the main job
# make test         sets everything up, then passes the tests
# PIP_ARGS passes options to pip, such as an index with CPU builds of torch.

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin

.PHONY: quickstart test check ui clean

quickstart: .venv/run.done
	$(BIN)/s3ta run experiments/quickstart.yaml

test: .venv/dev.done
	$(BIN)/python -m pytest

check: .venv/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: .venv/run.done
	$(BIN)/s3ta ui

clean:
	rm -rf .venv build *.egg-info

.venv/run.done: constraints.txt pyproject.toml
	sh infra/check-python.sh $(PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e .
	touch $@

.venv/dev.done: .venv/run.done
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@
