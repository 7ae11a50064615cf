PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
ifeq ($(origin PYTHON),command line) # another Python has an environment of its own, e.g. .venv-3.13
VENV ?= .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
endif
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test fast mutants weights interop zoo lint docs dist onnx clean

demo: $(VENV)/installed
	$(BIN)/rcnet denoise --demo

test: lint # a process a core; each takes a half of the tests, and then from the other's
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
	$(BIN)/python tools/dist.py --constraints $(CONSTRAINTS) --only wheel

fast: $(VENV)/installed # a minute of tests, without those that conftest.py calls slow
	$(BIN)/python -m pytest -m "not slow"

mutants: $(VENV)/installed # which small changes of the code no test notices; hours
	$(BIN)/python tools/mutants.py $(MODULES)

weights: $(VENV)/installed # all parts of the training of bundled weights: make weights NAME=r3.bsd-gray-25 DATA=data/bsd
	$(BIN)/python tools/weights.py $(NAME) --data $(DATA)

onnx: $(VENV)/installed # what ONNX Runtime runs, of the bundled weights: after each change of these
	$(BIN)/python tools/onnx_files.py

interop: # the examples with other libraries, in an environment of their own
	$(PYTHON) -m venv .venv-interop
	.venv-interop/bin/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[interop]'
	.venv-interop/bin/python -m pytest tests/interop

zoo: # known networks of other libraries, converted and exported, in an environment of their own; hours
	$(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[zoo]'
	.venv-zoo/bin/python -m benchmarks.zoo

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# A wheel and an sdist, installed without torch in an environment of their own and used from another folder
dist: $(VENV)/installed
	$(BIN)/python tools/dist.py --constraints $(CONSTRAINTS)

docs: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . docs/_build

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-* rcnet-demo.png
