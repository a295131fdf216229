# `make` lists the targets. Each creates .venv by itself and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(wildcard csrc/*)
MACHINE ?= local

.PHONY: help setup demo study test format hooks bench gpu clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch triton
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[hf,test]'
	touch $(STAMP)

setup: $(STAMP)  ## create .venv and build the package into it

demo: $(STAMP)  ## train a small model that recites, edit it, write demo/report.html
	$(BIN)/curvedit demo --out demo

study: $(STAMP)  ## compare edits of Gemma 3 270M, write study-real/study.html
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[hf,gguf]'
	$(BIN)/curvedit study --preset real --out study-real

test: $(STAMP)  ## lint, types, tests, doctests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --doctest-modules --pyargs curvedit

format: $(STAMP)  ## format the Python sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(STAMP)  ## install the pre-commit hooks
	$(BIN)/python -m pip install --quiet pre-commit
	$(BIN)/pre-commit install

bench: $(STAMP)  ## run the benchmarks and save their JSON under benchmarks/results/$(MACHINE)
	$(BIN)/python -m pytest benchmarks -k "not eigen and not fit" --benchmark-json=$(VENV)/kernels.json
	$(BIN)/python -m pytest benchmarks/bench_fit.py --benchmark-json=$(VENV)/fit.json
	$(BIN)/python -m pytest benchmarks/bench_eigen.py --benchmark-json=$(VENV)/eigen.json
	mkdir -p benchmarks/results/$(MACHINE)
	mv $(VENV)/kernels.json $(VENV)/fit.json $(VENV)/eigen.json benchmarks/results/$(MACHINE)

gpu:  ## on a GPU machine: build, test and measure, with PYTHON's torch; no network
	PYTHON=$(PYTHON) bash benchmarks/gpu_correct.sh $(DRY)
	PYTHON=$(PYTHON) bash benchmarks/gpu_measure.sh $(DRY)

clean:  ## remove .venv, builds and caches
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache
