# The two commands a newcomer needs are `make rl` and `make test`; everything installs into .venv, and
# real SGLang (make sglang) into .venv-sglang, and nowhere else.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=
MODEL ?=
SGLANG ?= cpu
SGLANG_VENV := .venv-sglang

.PHONY: setup rl eval test test-slow sglang test-sglang lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "make setup: $(PYTHON) was not found; install Python 3.11 or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(VENV) (about 1.8 GB, one to three minutes) ..." >&2
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install -qq --disable-pip-version-check -r requirements.txt >&2
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

rl: setup          ## the main job: world, cold start, PARA-GRPO, evaluation, report. ARGS=--config.knob=value
	@$(RUN) -m experiments.rl --config=configs/para_grpo.py $(ARGS)

# MODEL: a Hugging Face folder; without one, that of the newest run
eval: setup        ## a model on the world: MODEL=DIR, by default the newest run's. ARGS=--config.knob=value
	@model="$(MODEL)"; test -n "$$model" || model="$$(dirname "$$(ls -t runs/*/hf/config.json 2>/dev/null | head -n 1)")"; \
	if test "$$model" = .; then echo "make eval: there is no runs/*/hf; train a model with make rl, or name one: make eval MODEL=DIR" >&2; exit 2; fi; \
	$(RUN) -m experiments.eval --config=configs/eval.py "--config.model=$$model" $(ARGS)

test: setup        ## the fast tests
	@$(RUN) -m pytest -q -n auto --dist worksteal -m "not slow and not sglang" tests $(ARGS)

test-slow: setup   ## the others, among them the main job shortened to a few minutes
	@$(RUN) -m pytest -q -m "slow and not sglang" tests $(ARGS)

test-sglang: setup sglang   ## the contract of a rollout server, against the real SGLang
	@$(RUN) -m pytest -q -m sglang tests $(ARGS)

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check -q . || { echo 'make lint: some files are not laid out by ruff format; run: .venv/bin/ruff format .' >&2; exit 1; }

clean:
	rm -rf $(VENV) $(SGLANG_VENV) runs .pytest_cache .ruff_cache
