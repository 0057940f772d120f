# Everything from a fresh machine with python3 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types fast slow clean

demo: $(VENV)/.installed
	$(BIN)/phibuild build recipe=quickstart

test: lint types fast slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

fast: $(VENV)/.installed-dev
	$(BIN)/pytest tests -m "not slow" -n 2 -q

# Real toolchains: they are installed on the first run.
slow: $(VENV)/.installed-dev
	$(BIN)/phibuild toolchain install
	$(BIN)/pytest tests -m slow -n 2 --dist loadfile -q

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --group dev
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
