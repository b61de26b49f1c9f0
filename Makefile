# The two commands a newcomer needs are `make rl` and `make test`; everything installs into .venv, and
# real SGLang (make sglang) into .venv-sglang, and nowhere else.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=
MODEL ?=
MINUTES ?= 10
SEED ?= 0
SGLANG ?= cpu
SGLANG_VENV := .venv-sglang
AOT_VENV := .venv-aot
DEVICES ?= /dev
PCI ?= /sys/bus/pci/devices

# For which accelerator JAX is installed: cpu, cuda13 or tpu. Where none is named, that of .venv stays, and a new .venv is for cpu.
INSTALLED := $(patsubst $(VENV)/.installed-%,%,$(firstword $(wildcard $(VENV)/.installed-*)))
ifeq ($(strip $(ACCELERATOR)),)
override ACCELERATOR := $(or $(INSTALLED),cpu)
UNNAMED := yes
endif
STAMP := $(VENV)/.installed-$(ACCELERATOR)

.PHONY: setup accelerator rl eval test test-slow test-hosts test-nightly fuzz sglang test-sglang rehearse test-aot test-gpu plan-env lint clean

setup: $(STAMP)    ## .venv with everything: ACCELERATOR=cpu (the default), cuda13 or tpu

# Refuses an unknown accelerator. On `make setup`, and before a new .venv, it says what this machine has that is not used.
accelerator:
	@case "$(ACCELERATOR)" in cpu|cuda13|tpu) ;; *) \
	  echo "make setup: got ACCELERATOR=$(ACCELERATOR), wanted cpu, cuda13 or tpu; make setup ACCELERATOR=cpu runs anywhere" >&2; exit 2;; esac
	@$(if $(and $(UNNAMED),$(filter cpu,$(ACCELERATOR)),$(or $(filter setup,$(MAKECMDGOALS)),$(if $(INSTALLED),,new))),$(HINT),:)

# A GPU counts where the driver lists one; a TPU by its device files, Google's PCI devices (vendor 0x1ae0) behind vfio, or what a TPU machine's
# environment says.
define HINT
if ls $(DEVICES)/nvidia[0-9]* >/dev/null 2>&1 || nvidia-smi -L 2>/dev/null | grep -q GPU; then \
  echo "this machine has an NVIDIA GPU: make setup ACCELERATOR=cuda13 installs JAX for it" >&2; \
elif ls $(DEVICES)/accel[0-9]* >/dev/null 2>&1 || { test -d $(DEVICES)/vfio && grep -qs 0x1ae0 $(PCI)/*/vendor; } || test -n "$$TPU_ACCELERATOR_TYPE"; then \
  echo "this machine has a TPU: make setup ACCELERATOR=tpu installs JAX for it" >&2; \
fi
endef

# Another accelerator's plug-in would stay behind and be taken by JAX, so .venv is then made again. The extra takes the version of the pinned JAX.
$(STAMP): requirements.txt | accelerator
	@command -v $(PYTHON) >/dev/null || { echo "make setup: $(PYTHON) was not found; install Python 3.11 or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(VENV) for $(ACCELERATOR) (about 2.5 GB$(if $(filter-out cpu,$(ACCELERATOR)), and the libraries of the accelerator), one to three minutes) ..." >&2
	@$(PYTHON) -m venv $(if $(filter-out $(ACCELERATOR),$(INSTALLED)),--clear) $(VENV)
	@$(VENV)/bin/pip install -qq --disable-pip-version-check -r requirements.txt $(if $(filter-out cpu,$(ACCELERATOR)),'jax[$(ACCELERATOR)]') >&2
	@rm -f $(VENV)/.installed $(VENV)/.installed-*
	@touch $@

sglang: $(SGLANG_VENV)/.installed-$(SGLANG)   ## the environment of real SGLang servers: SGLANG=cpu or gpu

# The CPU list is whole and installed without looking at dependencies, which would pull CUDA; the GPU list is resolved.
$(SGLANG_VENV)/.installed-%: third_party/sglang/requirements-%.txt
	@command -v $(PYTHON) >/dev/null || { echo "make sglang: $(PYTHON) was not found; install Python 3.11 or name one: make sglang PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(SGLANG_VENV) for $* (cpu: about 2.2 GB, one to three minutes; gpu: some 10 GB) ..." >&2
	@rm -f $(SGLANG_VENV)/.installed-*
	@$(PYTHON) -m venv --clear $(SGLANG_VENV)
	@$(SGLANG_VENV)/bin/pip install -qq --disable-pip-version-check $(if $(filter cpu,$*),--no-deps) -r $< >&2
	@touch $@

plan-env: $(AOT_VENV)/.installed   ## compilers of GPUs and TPUs for experiments.plan --compile; no device is needed

# The environment sees the packages of .venv through a .pth file, and has the compilers alone: without CUDA's libraries, which nothing runs.
$(AOT_VENV)/.installed: third_party/compilers/requirements.txt | setup
	@echo "setting up $(AOT_VENV) (about 1.1 GB), one to three minutes ..." >&2
	@$(abspath $(RUN)) -m venv --clear $(AOT_VENV)
	@$(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(AOT_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_project.pth"
	@$(AOT_VENV)/bin/pip install -qq --disable-pip-version-check --no-deps -r $< >&2
	@touch $@

rl: setup          ## the main job: world, cold start, PARA-GRPO, evaluation, report. ARGS=--config.knob=value
	@$(RUN) -m experiments.rl --config=configs/para_grpo.py $(ARGS)

# MODEL: a Hugging Face folder; without one, that of the newest run
eval: setup        ## a model on the world: MODEL=DIR, by default the newest run's. ARGS=--config.knob=value
	@model="$(MODEL)"; test -n "$$model" || model="$$(dirname "$$(ls -t runs/*/hf/config.json 2>/dev/null | head -n 1)")"; \
	if test "$$model" = .; then echo "make eval: there is no runs/*/hf; train a model with make rl, or name one: make eval MODEL=DIR" >&2; exit 2; fi; \
	$(RUN) -m experiments.eval --config=configs/eval.py "--config.model=$$model" $(ARGS)

test: setup        ## the fast tests
	@$(RUN) -m pytest -q -n auto --dist worksteal -m "not slow and not sglang and not hosts and not aot and not aot_more and not nightly" tests $(ARGS)

# Two jobs at a time; tests of a file share what it sets up, so they stay together.
test-slow: setup   ## the others, among them the main job shortened to a few minutes
	@$(RUN) -m pytest -q -n 2 --dist loadfile -m "slow and not sglang and not hosts and not nightly" tests $(ARGS)

test-hosts: setup  ## several processes on this machine, each a host: SFT, RL, evaluation, one of them killed
	@$(RUN) -m pytest -q -m "hosts and not nightly" tests $(ARGS)

test-nightly: setup   ## what .ci/run has no time for: adapters, one slice, 512 frames, further kills and full disks
	@$(RUN) -m pytest -q -n 2 --dist loadfile -m nightly tests $(ARGS)

fuzz: setup        ## seeded inputs for every reader; status 1 after a fault: MINUTES=10 SEED=0. ARGS='--target NAME'
	@JAX_PLATFORMS=cpu SVT_LOG=1 $(RUN) -m tests.fuzz --minutes $(MINUTES) --seed $(SEED) $(ARGS)

test-sglang: setup sglang   ## the contract of a rollout server against the real SGLang, and the rehearsal
	@$(RUN) -m pytest -q -m sglang tests $(ARGS)

# With ARGS='-m "aot or aot_more"' every published scale, two minutes on two quiet cores.
test-aot: setup plan-env   ## the learner compiled for GPUs and TPUs that are not there, against its bounds
	@$(RUN) -m pytest -q -s -m aot tests/aot $(ARGS)

test-gpu: setup    ## what only a GPU shows: kernels, memory, MFU, a step with SGLang; at most ten minutes
	@$(RUN) -m tests.gpu $(ARGS)

rehearse: setup sglang   ## the main job of :8b with a narrow model: two SGLang servers, a kill, the export. ARGS=FOLDER
	@$(RUN) -m tests.rehearsal $(ARGS)

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check -q . || { echo 'make lint: some files are not laid out by ruff format; run: .venv/bin/ruff format .' >&2; exit 1; }
	@$(VENV)/bin/basedpyright

clean:
	rm -rf $(VENV) $(SGLANG_VENV) $(AOT_VENV) runs .pytest_cache .ruff_cache
