# Every target sets up the environment when it has to; `make` alone lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON312 ?= python3.12

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-newest-zarr peers test-peers lint format demo harvest train eval-harvest eval report \
	saebench-parity experiments info verify bench

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

setup: $(READY) ## create .venv with the pinned packages (does nothing the second time)

test: $(READY) ## run every test that needs no GPU and no network
	$(BIN)/python -m pytest --numprocesses auto

test-slow: $(READY) ## run the long tests too: fuzzing, torture
	$(BIN)/python -m pytest --numprocesses auto -m 'not gpu and not network'

test-newest-zarr: ## run the cache's tests on Python 3.12 (PYTHON312=…) with the newest zarr; needs no torch
	$(MAKE) --no-print-directory $(VENV)-newest/.ready VENV=$(VENV)
	$(VENV)-newest/bin/python -m pytest tests/cache --numprocesses auto -p no:cacheprovider

$(VENV)-newest/.ready: pyproject.toml
	$(PYTHON312) -m venv $(VENV)-newest
	$(VENV)-newest/bin/pip install --quiet 'zarr>=3.2' numcodecs numpy ml_dtypes crc32c fsspec jaxtyping tqdm \
		beartype hypothesis 'pytest>=9' pytest-xdist tensorstore
	@touch $@

PEERS := $(VENV)-peers/.ready

peers: $(PEERS) ## create .venv-peers: SAELens, dictionary_learning and sparsify, to read and to race against

$(PEERS): benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/pip install --quiet --no-deps --requirement benchmarks/peers/requirements.txt
	@touch $@

test-peers: $(PEERS) ## what we save loads in the other libraries, and the other way round
	$(VENV)-peers/bin/python -m pytest tests/train/test_exports_peers.py tests/train/test_adapters.py -p no:cacheprovider

lint: $(READY) ## ruff, mypy --strict, import contracts, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# LAYER=12 is --layer 12, SHARD_SEQUENCES=64 is --shard-sequences 64.
HARVEST := MODEL REVISION DATASET DATASET_SPLIT DATASET_REVISION TEXT_COLUMN SEPARATOR TOKENS CONTEXT PACKING CACHE \
	BATCH DTYPE ATTENTION DEVICE SEED HELD_OUT_FRACTION SHARD_SEQUENCES
flags = $(foreach v,$(1),$(if $($(v)),--$(subst _,-,$(call lower,$(v))) '$($(v))'))
lower = $(shell echo '$(1)' | tr A-Z a-z)

harvest: $(READY) ## run a language model once, keep its residual stream: make harvest LAYER=12 [MODEL=miniature TOKENS=1M …]
	@$(BIN)/python -m harvest $(call flags,LAYER $(HARVEST)) $(ARGS)

TRAIN := VARIANT CACHE LAYER BASE D_SAE K STEPS BATCH SEED SET SWEEP SWEEP_FILE OUT DEVICE LOG KEEP

train: $(READY) ## train SAEs from a cache: make train VARIANT=topk [CACHE= LAYER= BASE= D_SAE= K= STEPS= SEED= SET="lr=3e-4" …]
	@$(BIN)/python -m train $(call flags,$(TRAIN)) $(ARGS)

demo: $(READY) ## minutes, offline: harvest the miniature once, train ten SAEs from that cache, evaluate and draw them
	@$(BIN)/python -m harvest --model miniature --layer 1,2 --tokens 500k --cache caches/demo
	@$(BIN)/python -m train --variant topk,batchtopk,matryoshka,temporal,ortho_active --cache caches/demo --layer 1,2 \
		--d-sae 1024 --k 16 --steps 500
	@$(BIN)/python -m evals harvest --model miniature --layer 1 --profile quick --eval-cache caches/demo_evals
	@$(BIN)/python -m evals score --run 'runs/demo/*-L1-*' --eval-cache caches/demo_evals \
		--evals core,loss,sparse_probing,absorption,temporal
	@$(BIN)/python -m evals report --run 'runs/demo/*-L1-*' --eval-cache caches/demo_evals

EVAL_HARVEST := LAYER MODEL REVISION PROFILE EVAL_CACHE CORE TEXTS WORDS FORGET RETAIN QUESTIONS FORGET_SUBJECT ONLY \
	DEVICE DTYPE
EVAL := RUN EVALS EVAL_CACHE LAYER RESULTS DEVICE SET JUDGE JUDGE_URL REQUESTS_PER_MINUTE
switches = $(foreach v,$(1),$(if $($(v)),--$(call lower,$(v))))

eval-harvest: $(READY) ## run a language model once, keep what evaluations need of it: make eval-harvest LAYER=12 [MODEL=miniature PROFILE= …]
	@$(BIN)/python -m evals harvest $(call flags,$(EVAL_HARVEST)) $(ARGS)

eval: $(READY) ## evaluate SAEs from that: make eval [RUN='runs/demo/*' EVALS=core,loss,… EVAL_CACHE= FORCE=1 TRUST=1]
	@$(BIN)/python -m evals score $(call flags,$(EVAL)) $(call switches,FORCE TRUST) $(ARGS)

report: $(READY) ## pictures of the results on one page: make report [RUN= RESULTS= OUT=]
	@$(BIN)/python -m evals report $(call flags,RUN RESULTS EVAL_CACHE OUT) $(ARGS)

SAEBENCH := $(VENV)-saebench/.ready

$(SAEBENCH): evals/saebench/requirements.txt
	$(PYTHON) -m venv $(VENV)-saebench
	$(VENV)-saebench/bin/pip install --quiet --no-deps --requirement evals/saebench/requirements.txt
	@touch $@

# SAEBench's shape annotations contradict each other under this release of jaxtyping.
saebench-parity: $(SAEBENCH) ## SAEBench's own core and sparse probing beside ours: make saebench-parity RUN= EVAL_CACHE= RESULTS=
	@JAXTYPING_DISABLE=1 $(VENV)-saebench/bin/python -m evals.saebench.parity $(call flags,RUN EVAL_CACHE RESULTS OUT) $(ARGS)

EXPERIMENTS := CACHE LAYER SCALE SEEDS D_SAE K BATCH STEPS OUT RUNS DEVICE

experiments: $(READY) ## one research idea from a cache to its page: make experiments SEED_IDEA=003 [CACHE= LAYER= SCALE= SEEDS= …]
	@$(BIN)/python -m evals.experiments $(call flags,SEED_IDEA $(EXPERIMENTS)) $(ARGS)

info: $(READY) ## what is in a cache: make info CACHE=caches/…
	@$(BIN)/python -m cache info '$(CACHE)'

verify: $(READY) ## check every byte of a cache: make verify CACHE=caches/…
	@$(BIN)/python -m cache verify '$(CACHE)'

RIVALS := $(if $(wildcard $(PEERS)),$(VENV)-peers/bin/python)

bench: $(READY) ## measure the claims of the README on this machine; after `make peers` against the other libraries too
	$(BIN)/python -m benchmarks.cache
	$(BIN)/python -m benchmarks.harvest $(if $(RIVALS),--saelens $(RIVALS))
	$(BIN)/python -m benchmarks.feed $(if $(RIVALS),--saelens $(RIVALS))
	$(BIN)/python -m benchmarks.train_step $(if $(RIVALS),--peers $(RIVALS))
	OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.train_together
	OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.penalties
	OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.evals
