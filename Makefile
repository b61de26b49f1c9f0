# The two commands a newcomer needs are `make rl` and `make test`; everything installs into .venv and nowhere else.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=

.PHONY: setup rl eval test test-slow lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "make setup: $(PYTHON) was not found; install Python 3.11 or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(VENV) (about 1.8 GB, one to three minutes) ..." >&2
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install -qq --disable-pip-version-check -r requirements.txt >&2
	@touch $@

rl: setup          ## the main job: world, cold start, PARA-GRPO, evaluation, report. ARGS=--config.knob=value
	@$(RUN) -m experiments.rl --config=configs/para_grpo.py $(ARGS)

test: setup        ## the fast tests
	@$(RUN) -m pytest -q -n auto --dist loadfile -m "not slow" tests $(ARGS)

test-slow: setup   ## the others, among them the main job shortened to a few minutes
	@$(RUN) -m pytest -q -m slow tests $(ARGS)

lint: setup
	@$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
