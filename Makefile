# `make` alone explains itself. Everything runs from a virtual environment of its own, made when it is missing.

MODEL ?= micro
METHOD ?= htgrpo
# The models that a laptop trains; aMUSEd trains in our own loop too.
SMALL := micro words words-free
# native: our own loop. upstream: MaskGRPO's with the patches, in which the 8B models are trained.
LOOP ?= $(if $(filter $(SMALL) amused,$(MODEL)),native,upstream)
# A file of configs/accelerate for `accelerate launch`, or none: one process.
LAUNCH ?= $(if $(filter $(SMALL) amused,$(MODEL)),none,zero2)
CHECKPOINT ?=
UPSTREAM_URL ?=
TO ?=
CONTINUE ?=
ABLATION ?=
# A file of configs/reward instead of the model's own rewards.
REWARD ?=
SEED ?= 0
SET ?=
RESUME ?=
SEEDS ?= 3
METHODS ?= htgrpo maskgrpo maskgrpo-fixed unigrpo d1 tracegrpo agrpo
# One GPU has room for one run of aMUSEd.
JOBS ?= $(if $(filter amused,$(MODEL)),1,2)
# Of a comparison: a quarter of a single run's, because a cycle of a baseline takes up to twenty times as long.
CYCLES ?= $(if $(filter $(SMALL),$(MODEL)),10)
# 1: a comparison tunes each method first, as configs/comparison says.
TUNE ?=
# Which of the paper's ablations, 1 to 5.
A ?=
# Of a reproduction: scorers besides the benchmarks' own, the commands alone.
SCORERS ?=
DRY ?=
# Scored sets of images to compare instead of training, or folders that hold some; and the row that differences are from.
RUNS ?=
BASELINE ?=
# Of images for a benchmark: its name or a file of prompts, the adapter to fold in, processes (GPUs), the row's name in
# tables, another prompt file, and a number of prompts per task.
BENCH ?=
ADAPTER ?=
PROCESSES ?= 1
LABEL ?=
PROMPTS ?=
LIMIT ?=
OUT ?= runs/micro-base
STEPS ?= 1800
PLACEMENT ?= canonical
# Of a base of the words world.
DIFFICULTY ?= fixed
STEPS_WORDS = $(if $(filter free,$(DIFFICULTY)),6500,240)
# A checkpoint of the words world to train further, and the steps that it has had.
FURTHER ?=
DONE ?=
TEST_JOBS ?= 2
# A tuned comparison: a file of configs/comparison.
PLAN ?= $(MODEL:-free=)
# 1: how time and memory grow, instead of a cycle.
SCALING ?=

VENV := .venv
READY := $(VENV)/.ready
READY_UPSTREAM := $(VENV)/.ready-upstream
READY_CLIP := $(VENV)/.ready-clip
TEST_CLIP := $(VENV)/clip/.ready
BIN := $(VENV)/bin
# An index of PyTorch besides PyPI. On Linux without a GPU, https://download.pytorch.org/whl/cpu saves gigabytes.
TORCH_INDEX ?=

# The first Python 3.11 or newer that is found; `make PYTHON=...` takes another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

known = $(sort $(notdir $(basename $(wildcard configs/$(1)/*.yaml))))
METHODS_KNOWN := $(call known,method)
# $(call check,variable,folder): stops with one line when the variable names no file of configs/folder.
check = $(if $(filter-out $(call known,$(2)),$($(1))),$(error unknown $(1) `$(filter-out \
	$(call known,$(2)),$($(1)))` (one of: $(call known,$(2)))))

ifneq ($(filter train plan diagnose compare ablate reproduce,$(MAKECMDGOALS)),)
$(call check,MODEL,model)
$(call check,METHOD,method)
$(call check,METHODS,method)
$(call check,ABLATION,ablation)
$(call check,REWARD,reward)
$(if $(strip $(METHODS)),,$(error METHODS names no method (some of: $(METHODS_KNOWN))))
$(if $(filter-out native reference upstream,$(LOOP)),$(error unknown LOOP `$(LOOP)` (one of: native upstream)))
$(if $(filter-out none,$(LAUNCH)),$(call check,LAUNCH,accelerate))
$(if $(filter ablate,$(MAKECMDGOALS)),$(if $(filter 1 2 3 4 5,$(A)),,$(error A names one of the paper's ablations (A=1 to A=5))))
# Pictures of words are judged by the run's own evaluation; no benchmark's prompts suit that model.
$(if $(filter reproduce,$(MAKECMDGOALS)),$(if $(filter words%,$(MODEL)),$(if $(BENCH),,$(error reproduce needs a benchmark, \
	and none is for MODEL=$(MODEL): `make compare MODEL=$(MODEL)` trains, evaluates and compares))))
endif

BENCHES := geneval dpg microeval
ifneq ($(filter eval-images,$(MAKECMDGOALS)),)
$(call check,MODEL,model)
$(call check,METHOD,method)
$(if $(strip $(BENCH)),,$(error BENCH names no benchmark (one of: $(BENCHES); or a file of prompts)))
$(if $(filter $(BENCHES),$(BENCH))$(wildcard $(BENCH)),,$(error unknown BENCH `$(BENCH)` (one of: $(BENCHES); or a \
	file of prompts)))
$(if $(shell echo '$(PROCESSES)' | grep -xE '[1-9][0-9]{0,3}'),,$(error PROCESSES is `$(PROCESSES)`, not a number \
	from 1))
# OUT has a default for pretrain-micro.
EVAL_OUT := $(if $(filter file,$(origin OUT)),runs/eval/$(MODEL)-$(notdir $(basename $(BENCH))),$(OUT))
TORCHRUN := $(if $(filter-out 1,$(PROCESSES)),torchrun --standalone --nproc_per_node $(PROCESSES) -m htgrpo_ext.cli,htgrpo)
endif

# A scorer's environment is made by its script; one behind a server needs none.
ifneq ($(filter eval-score,$(MAKECMDGOALS)),)
SCORER_SCRIPT := $(if $(filter url=%,$(SET)),,$(wildcard launch/eval/$(filter-out official,$(SCORER)).sh))
$(if $(strip $(SCORER)),,$(error SCORER names no scorer (one of: $(filter-out official,$(notdir $(basename $(wildcard \
	launch/eval/*.sh)))) micro; or file.py:Class)))
$(if $(filter file,$(origin OUT)),$(error OUT names no set of images (the OUT of `make eval-images`)))
endif

REWARD_FILE := $(addprefix configs/reward/,$(addsuffix .yaml,$(REWARD)))
MODEL_FILES := configs/model/$(MODEL).yaml $(REWARD_FILE)
FILES := $(MODEL_FILES) configs/method/$(METHOD).yaml $(addprefix configs/ablation/,$(addsuffix .yaml,$(ABLATION)))
SETS := $(if $(CHECKPOINT),--set 'model.checkpoint=$(CHECKPOINT)') $(foreach s,$(SET),--set '$(s)')
SETS_SHORT := $(if $(CYCLES),--set loop.cycles=$(CYCLES)) $(SETS)
HTGRPO := $(if $(filter-out none,$(LAUNCH)),accelerate launch --config_file configs/accelerate/$(LAUNCH).yaml \
	-m htgrpo_ext.cli,htgrpo)
# Installs packages, and takes them out again if the modules named first cannot be imported.
INSTALL := $(BIN)/python launch/install.py
PATCHES := $(PYTHON) -m htgrpo_ext.maskgrpo.patches
FROM := $(if $(UPSTREAM_URL),--url '$(UPSTREAM_URL)')
empty :=
comma := ,
listed = $(subst $(empty) $(empty),$(comma),$(strip $(1)))
yes = $(filter-out 0 no false,$(1))

.PHONY: help setup train plan compare ablate reproduce eval-images eval-score diagnose test lint pretrain-micro \
	pretrain-words clean upstream apply-patches unapply-patches check-patches export-patches rebase-patches applied \
	setup-upstream setup-clip test-upstream test-gpu bench bench-cycle bench-rewards

help:  ## Show this
	@echo "make TARGET [VARIABLE=value]..."
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  \1\t\2/p' Makefile | expand -t 18
	@echo
	@echo "MODEL     $(call known,model)"
	@echo "METHOD    $(METHODS_KNOWN)"
	@echo "ABLATION  $(call known,ablation)"
	@echo "REWARD    $(call known,reward)"
	@echo "SET       \"key=value key.sub=value\", over the files in configs/"

setup: $(READY)  ## Make the virtual environment in .venv

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found (make PYTHON=/path/to/python)" >&2; exit 2; }
	@echo "setting up $(VENV) with $(PYTHON); this takes a few minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch"
	@$(INSTALL) os -qq --retries 1 --no-deps -c constraints.txt torch \
		$(addprefix --extra-index-url ,$(TORCH_INDEX))
	@echo "installing htgrpo_ext and what it needs"
	@$(INSTALL) htgrpo_ext.workflow.train,htgrpo_ext.rewards.server,diffusers --quiet -c constraints.txt -e ".[dev]"
	@$(INSTALL) rapidocr_onnxruntime -qq --no-deps --ignore-requires-python -c constraints.txt rapidocr-onnxruntime
	@touch $@

setup-upstream: $(READY_UPSTREAM)  ## Add what MaskGRPO's loop needs: TRL, DeepSpeed and more

$(READY_UPSTREAM): $(READY)
	@echo "adding what MaskGRPO's loop needs; this takes a few minutes, once"
	@$(INSTALL) setuptools,wheel --quiet -c constraints.txt setuptools wheel
	@$(INSTALL) trl,datasets,diffusers,einops,jaxtyping,omegaconf,sentencepiece,wandb --quiet -c constraints.txt \
		-e ".[upstream]"
	@echo "building DeepSpeed"
	@DS_BUILD_OPS=0 $(INSTALL) deepspeed --quiet -c constraints.txt --no-build-isolation deepspeed
	@touch $@

setup-clip: $(READY_CLIP)  ## Add what the rewards clip and aesthetic need in process: open_clip

# torchvision has to be built for the same torch, so it comes from the same index.
$(READY_CLIP): $(READY)
	@echo "adding open_clip for the rewards clip and aesthetic; this takes a minute, once"
	@$(INSTALL) torchvision,open_clip,transformers.image_utils --quiet -c constraints.txt -e ".[clip]" \
		$(addprefix --extra-index-url ,$(TORCH_INDEX))
	@touch $@

# For tests only, and beside the environment: see tests/helpers/open_clip_here.py.
$(TEST_CLIP): $(READY)
	@echo "adding open_clip for the tests, in $(VENV)/clip"
	@$(BIN)/python -m pip install -qq --no-deps -c constraints.txt --target $(VENV)/clip \
		open_clip_torch torchvision timm ftfy wcwidth
	@touch $@

train: $(if $(filter upstream,$(LOOP)),applied $(READY_UPSTREAM),$(READY))  ## Train: MODEL, METHOD, REWARD, ABLATION, SEED, LOOP, LAUNCH, CHECKPOINT, SET, RESUME=1
	@$(BIN)/$(HTGRPO) train $(FILES) --loop $(LOOP) --set seed=$(SEED) $(SETS) $(if $(call yes,$(RESUME)),--resume)

plan: $(READY)  ## Show what `make train` would do, with the same variables
	@$(BIN)/htgrpo plan $(FILES) --set seed=$(SEED) $(SETS)

# The command has defaults of its own for what is not named. PROMPTS is a number here.
diagnose: $(READY)  ## Compare each method's gradient with the exact one, before training: MODEL, CHECKPOINT, METHODS, PROMPTS, ADAPTER, REWARD, OUT, SET
	@$(BIN)/htgrpo diagnose $(MODEL_FILES) $(SETS) \
		$(if $(filter file,$(origin METHODS)),,--methods '$(call listed,$(METHODS))') \
		$(if $(PROMPTS),--prompts '$(PROMPTS)') $(if $(ADAPTER),--adapter '$(ADAPTER)') \
		--out '$(if $(filter file,$(origin OUT)),runs/diagnose-$(MODEL),$(OUT))'

compare: $(READY)  ## Train methods side by side: METHODS="a b", SEEDS=3, CYCLES=10, JOBS=2, MODEL, REWARD, SET; TUNE=1, DRY=1, PLAN: tuned ones; or RUNS="a b", BASELINE, OUT: scored images
ifneq ($(call yes,$(TUNE)),)
	@$(BIN)/htgrpo compare $(MODEL_FILES) --tune configs/comparison/$(PLAN).yaml --jobs $(JOBS) $(SETS) \
		$(if $(filter file,$(origin METHODS)),,--methods '$(call listed,$(METHODS))') \
		--out $(call or-out,runs/compare-tuned$(if $(filter micro,$(MODEL)),,-$(MODEL))$(if $(filter file,$(origin PLAN)),,-$(PLAN))) $(if $(call yes,$(DRY)),--dry-run)
else ifneq ($(strip $(RUNS)),)
	@$(BIN)/htgrpo eval summarize $(RUNS) $(if $(BASELINE),--baseline '$(BASELINE)') \
		--out '$(if $(filter file,$(origin OUT)),runs/compare,$(OUT))' $(if $(filter file,$(origin MODEL)),,--model '$(MODEL)')
else
	@$(BIN)/htgrpo compare $(MODEL_FILES) --methods '$(call listed,$(METHODS))' \
		--seeds $(SEEDS) --jobs $(JOBS) $(SETS_SHORT)
endif

# Their own defaults, where a benchmark, methods or a folder are not named.
reproduce ablate: BENCH := $(or $(BENCH),$(if $(filter micro,$(MODEL)),microeval,geneval dpg))
reproduce: METHODS := $(if $(filter file,$(origin METHODS)),maskgrpo tracegrpo htgrpo,$(METHODS))
or-out = $(if $(filter file,$(origin OUT)),$(1),'$(OUT)')
READY_FOR_ALL := $(if $(filter upstream,$(LOOP)),$(if $(call yes,$(DRY)),$(READY),applied $(READY_UPSTREAM)),$(READY))
REPRODUCE = $(BIN)/htgrpo reproduce $(MODEL_FILES) --bench '$(call listed,$(BENCH))' \
	$(if $(SCORERS),--scorers '$(call listed,$(SCORERS))') --seeds $(SEEDS) \
	--jobs $(if $(filter none,$(LAUNCH)),$(JOBS),1) --loop $(LOOP) \
	$(if $(filter-out none,$(LAUNCH)),--launch configs/accelerate/$(LAUNCH).yaml) $(if $(LIMIT),--limit '$(LIMIT)') \
	$(if $(BASELINE),--baseline '$(BASELINE)') $(if $(call yes,$(DRY)),--dry-run) $(SETS_SHORT)

reproduce: $(READY_FOR_ALL)  ## Train, generate, score, compare: MODEL, METHODS, SEEDS, BENCH, SCORERS, CYCLES, JOBS, LIMIT, SET, DRY=1
	@$(REPRODUCE) --methods '$(call listed,$(METHODS))' --out $(call or-out,runs/reproduce-$(MODEL))

ablate: $(READY_FOR_ALL)  ## Run one of the paper's ablations beside the full method: A=1..5, MODEL, SEEDS=3, CYCLES=10, JOBS=2, SET
	@$(if $(filter $(SMALL),$(MODEL)),$(BIN)/htgrpo ablate $(MODEL_FILES) --ablation $(A) --seeds $(SEEDS) --jobs $(JOBS) \
		--out $(call or-out,runs/ablate) $(SETS_SHORT),$(REPRODUCE) --ablation $(A) --out $(call or-out,runs/ablate-$(MODEL)))

eval-images: $(READY)  ## Paint a benchmark's prompts: BENCH, MODEL, CHECKPOINT, ADAPTER, OUT, PROCESSES, LABEL, PROMPTS, LIMIT, SET
	@$(BIN)/$(TORCHRUN) eval generate $(MODEL_FILES) configs/method/$(METHOD).yaml $(SETS) --bench '$(BENCH)' \
		--out '$(EVAL_OUT)' $(if $(ADAPTER),--adapter '$(ADAPTER)') $(if $(LABEL),--label '$(LABEL)') \
		$(if $(PROMPTS),--prompts '$(PROMPTS)') $(if $(LIMIT),--limit '$(LIMIT)')

eval-score: $(READY)  ## Have a scorer judge a set: SCORER, OUT, SET="option=value", CALIBRATION=folder, AGAIN=1
	@$(or $(SCORER_SCRIPT),$(BIN)/htgrpo eval score --scorer '$(SCORER)') '$(OUT)' $(foreach s,$(SET),--set '$(s)') \
		$(if $(CALIBRATION),--calibration '$(CALIBRATION)') $(if $(filter-out 0 no false,$(AGAIN)),--again)

test: $(READY) $(TEST_CLIP)  ## Run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS)

upstream:  ## Get MaskGRPO's pinned commit into upstream/: UPSTREAM_URL=/path/or/url for a mirror
	@$(PATCHES) get $(FROM)

apply-patches:  ## Apply the patch series to upstream/, which is cloned if it is empty: UPSTREAM_URL for a mirror
	@$(PATCHES) apply $(FROM)

unapply-patches:  ## Take the patch series off upstream/ again
	@$(PATCHES) unapply

check-patches:  ## Check the patch series, on upstream/ too if it is there
	@$(PATCHES) check

export-patches:  ## Write patches/ from the commits in upstream/
	@$(PATCHES) export

rebase-patches:  ## Move the patch series to another commit of MaskGRPO: TO=COMMIT, CONTINUE=1 after an edit by hand
	@$(PATCHES) rebase $(if $(TO),--to '$(TO)') $(if $(CONTINUE),--continue)

# An empty upstream/ is filled. One that holds something else is the user's, and refused.
applied:
	@test -e upstream/.git || $(PATCHES) apply $(FROM)
	@$(PATCHES) applied >/dev/null

test-upstream:  ## Run the tests beside MaskGRPO's code: UPSTREAM_URL; MMADA_, LUMINA_, GENEVAL_, DPG_CHECKOUT for others'
	@$(PATCHES) get $(FROM)
	@$(PATCHES) apply
	@$(MAKE) --no-print-directory setup-upstream
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS) -m upstream -rs

test-gpu: $(READY)  ## Run the tests that are made for a GPU, on CUDA; without one all are skipped
	@HTGRPO_TEST_DEVICE=cuda OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/devices -rs -rP

bench: applied $(READY_UPSTREAM)  ## Measure scoring and updates of a cycle, MaskGRPO as published and HT-GRPO
	@$(BIN)/python benchmarks/scoring_cost.py --size 64,4 --repeats 3

# MaskGRPO's rows are measured where its code and its packages are.
bench-cycle: $(READY)  ## Measure a whole cycle, methods in turn: HT-GRPO, MaskGRPO, TraceGRPO; SCALING=1: how time and memory grow
	@$(BIN)/python benchmarks/cycle.py $(if $(call yes,$(SCALING)),--scaling)

bench-rewards: $(READY)  ## Measure what batching gains in a reward server, and overlap in a run
	@$(BIN)/python benchmarks/reward_server.py --requests 4 --threads 1
	@$(BIN)/python benchmarks/reward_overlap.py

lint: $(READY)  ## Check style, types, and that imports point downwards
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports --no-cache

pretrain-micro: $(READY)  ## Train the micro model's base checkpoint: OUT, SEED, STEPS, PLACEMENT
	@$(BIN)/htgrpo pretrain-micro --out $(OUT) --seed $(SEED) --steps $(STEPS) --placement $(PLACEMENT)

pretrain-words: $(READY)  ## Make the words world's tokenizer, train a base checkpoint: OUT, SEED, STEPS, DIFFICULTY=fixed|free; FURTHER, DONE
	@$(BIN)/htgrpo pretrain-words --out $(call or-out,runs/words-$(DIFFICULTY)) --seed $(SEED) \
		--steps $(if $(filter file,$(origin STEPS)),$(STEPS_WORDS),$(STEPS)) --difficulty $(DIFFICULTY) \
		$(if $(FURTHER),--further '$(FURTHER)') $(if $(DONE),--done $(DONE))

clean:  ## Remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find htgrpo_ext tests -name __pycache__ -prune -exec rm -rf {} +
