# make book   run every chapter and build the pages from what was computed
# make html   build the pages from the committed outputs, in seconds
# make pdf    print the built pages into one file, _build/normlib.pdf; needs chromium
# make serve  show the built pages at http://127.0.0.1:8000
# make test   everything that CI checks
# make notebooks   run every chapter in place, and write the claims page
# make claims write the pages that follow from the chapters' outputs: verdicts, checks, map
# make times  measure how long each chapter computes, for the front page
# make bench  measure the speed, and write book/performance.md (about ten minutes)
# make gpu    run every chapter on a CUDA device, chapter 10 at full size (its grids have not been run to the end)
# make clean  remove what was built; the environment stays

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
VENV ?= .venv
BIN := $(VENV)/bin
# Exact versions, so that an environment made next year is this one. Empty for the newest.
CONSTRAINTS ?= constraints.txt
READY := $(VENV)/.ready
# Chapters, tests and pages side by side.
JOBS ?= 2

.PHONY: book html pdf serve test notebooks claims times lint unit nbval pages bench gpu clean env
.DEFAULT_GOAL := book
.NOTPARALLEL:

env: $(READY)

$(READY): pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "make: no Python found; install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $(PYTHON) is too old; install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "make: $(PYTHON) lacks venv; install it (Debian, Ubuntu: python3-venv)"; exit 1; }
	@echo "making the environment in $(VENV) (a few minutes, most of it torch) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]' \
	  $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	@touch $@

book: $(READY)
	@NORMLIB_SIZE=laptop $(BIN)/python tools/notebooks.py --into _build/fresh --jobs $(JOBS)
	@$(BIN)/python tools/claims.py --book _build/fresh
	@rm -rf _build/html _build/.doctrees
	@$(BIN)/jupyter-book build _build/fresh --path-output . -W -n --keep-going -q
	@echo "open $(CURDIR)/_build/html/index.html, or run: make serve"

html: $(READY)
	@$(BIN)/jupyter-book build . -q
	@echo "open $(CURDIR)/_build/html/index.html, or run: make serve"

pdf: html
	@$(BIN)/python -m tools.pdf
	@echo "open $(CURDIR)/_build/normlib.pdf"

serve: html
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

notebooks: $(READY)
	@env -u NORMLIB_CIFAR10 NORMLIB_SIZE=laptop $(BIN)/python tools/notebooks.py --jobs $(JOBS)
	@$(BIN)/python tools/claims.py

claims: $(READY)
	@$(BIN)/python tools/claims.py

times: $(READY)
	@env -u NORMLIB_CIFAR10 NORMLIB_SIZE=laptop \
	  $(BIN)/python tools/notebooks.py --into _build/times --times book/times.yml
	@$(BIN)/python tools/claims.py

test: lint unit nbval pages

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --ignore tests/built

# Without images and without a GPU, as the committed outputs were made.
# One thread each, side by side; the checks leave their values where tests/built finds them.
nbval: $(READY)
	rm -rf _build/checks
	env -u NORMLIB_CIFAR10 NORMLIB_SIZE=laptop \
	  OMP_NUM_THREADS=1 NORMLIB_CHECKS=$(CURDIR)/_build/checks $(BIN)/python -m pytest \
	  -n $(JOBS) --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout 600 \
	  --nbval-sanitize-with tests/nbval.cfg notebooks

# From clean: an incremental build can hide a warning.
pages: $(READY)
	rm -rf _build/html _build/.doctrees
	$(BIN)/jupyter-book build . -n -W --keep-going -q
	$(BIN)/python -m pytest -n $(JOBS) tests/built

bench: $(READY)
	$(BIN)/python tools/bench.py --write

# The chapters go to _build/fresh; what chapter 10 finishes is kept in _build/gpu, part by part, and
# becomes recordings when all is there.
gpu: $(READY)
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit( \
	  "make gpu: torch sees no CUDA device; the chapters run without one: make book")'
	NORMLIB_SIZE=gpu NORMLIB_KEEP=$(CURDIR)/_build/gpu NORMLIB_DATA=$(CURDIR)/_build/data \
	  $(BIN)/python tools/notebooks.py --into _build/fresh
	$(BIN)/python -m normlib.recordings --parts _build/gpu \
	  full_cifar10_nesterov full_cifar10_adam full_cifar10_unit_norm
	@echo "chapters with outputs: _build/fresh/notebooks; recordings: git status normlib/recordings"

clean:
	rm -rf _build dist
