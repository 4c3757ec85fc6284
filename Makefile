# make demo: from nothing to a GPT that writes. make test: lint and all tests. Both set up .venv, once.

PYTHON ?= python3
BIN := .venv/bin

demo: .venv/installed
	$(BIN)/python data/hitchikersguide/prepare.py
	$(BIN)/python train.py config/train_hitchikers_cpu.py --init_from=auto
	$(BIN)/python sample.py --out_dir=out-hitchikers --num_samples=3 --max_new_tokens=200

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	touch $@

.PHONY: demo test
