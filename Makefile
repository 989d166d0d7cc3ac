# Every target sets up what it needs first; python3 (3.11 or later, with its venv module) and make are enough.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: app demo test check notebooks clean

app: .venv/ready            ## the laboratory in the browser, at http://127.0.0.1:7860
	$(BIN)/python app.py

demo: .venv/ready           ## the same job without a browser, in one to two minutes
	$(BIN)/python -m gpt2lab demo

test: .venv/ready-dev       ## lint, types and all tests, those in a browser last; they need Debian's or Ubuntu's chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy gpt2lab
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --ignore tests/browser
	$(BIN)/python -m pytest tests/browser

check: .venv/ready-dev      ## lint, types and the fast tests of data, evaluation, generation, inspection, figures and pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy gpt2lab
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow" tests/data tests/evaluation tests/generation \
	  tests/inspection tests/figures tests/widgets tests/pages tests/test_imports.py tests/test_model.py

notebooks: .venv/ready-dev  ## run the notebooks from top to bottom and keep their outputs
	$(BIN)/python notebooks/run.py notebooks/*.ipynb

clean:                      ## remove the environment and caches; runs are kept
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

.venv/ready: requirements.txt pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/ready-dev: requirements-dev.txt .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
