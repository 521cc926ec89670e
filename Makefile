# Everything runs in .venv; PIP_ARGS passes extra options to pip, PYTHON chooses the interpreter.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin

.PHONY: demo docs gallery notebooks test install clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e ".[test]"
	touch $@

demo: install
	$(BIN)/kdx demo

docs: install
	$(BIN)/python tools/reference.py out/docs

gallery: install
	$(BIN)/python tools/gallery.py out/gallery

notebooks: install
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy kdx_analysis
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto --dist worksteal

clean:
	rm -rf .venv build *.egg-info
