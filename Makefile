# make demo    from nothing to a GPT that writes
# make test    lint and the tests, under 10 minutes on 2 cores
# make quick   lint and the tests that are not marked slow, under 90 seconds: while you work
# make full    the tests marked full, which make test leaves out
# Each sets up .venv when it is first run.

PYTHON ?= python3
BIN := .venv/bin

demo: .venv/installed
	$(BIN)/python data/prepare.py data/hitchikersguide/transcriptions.txt --dataset=demo --encoding=bpe --clean=True
	$(BIN)/python train.py config/train_demo.py --init_from=auto
	$(BIN)/python sample.py --out_dir=out-demo --num_samples=3 --max_new_tokens=200

quick: lint
	$(BIN)/python -m pytest -m "not slow and not full"

test: lint
	$(BIN)/python -m pytest -m "not full"

full: .venv/installed-dev
	$(BIN)/python -m pytest -m full

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-play.txt requirements-dev.txt
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	touch $@

.PHONY: demo quick test full lint
