# Everything from a fresh machine with python3 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv, which takes packages from where pip is configured to take them from.
UV = $(BIN)/python -c 'import sys; from phibuild.toolchains.uv import run_uv; \
	run_uv("make", *sys.argv[1:])'

.PHONY: demo test every lint types toolchains fast slow docs site lock clean

demo: $(VENV)/.installed
	$(BIN)/phibuild build recipe=quickstart

# Toolchains come from the network while the code is checked.
test: $(VENV)/.installed-dev
	$(MAKE) --jobs=2 lint types toolchains
	$(MAKE) fast slow

# The same with all of each product of shapes, backends and types, not one of each kind: a release.
every: export EVERY := --every
every: test

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

toolchains: $(VENV)/.installed-dev
	$(BIN)/phibuild toolchain install

fast: $(VENV)/.installed-dev
	$(BIN)/pytest tests/unit -n 4 -q $(EVERY)

# Real toolchains, three processes a core: what waits for a job or a signal keeps no core from
# others, and with two a core one eighth of them was idle.
slow: toolchains
	$(BIN)/pytest tests/slow -n 6 --core-each --dist loadfile --no-loadscope-reorder -q $(EVERY)

# What docs/ holds of the code: the tables that the tests write.
docs: toolchains
	$(BIN)/phibuild schema --write docs/schema
	$(BIN)/python tools/pages.py
	$(BIN)/pytest tests -m "case or outside" --correctness docs/correctness.md \
		-n 2 --core-each --dist loadfile -q
	$(BIN)/pytest tests/slow/test_contract.py --support docs/support.md -q
	$(BIN)/pytest tests/slow/test_faults*.py --kills 15 --faults-table docs/faults.md -q

# The pages of docs/ as a site in site/: every warning, a broken link too, is an error.
site: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W -n --keep-going -b html docs site

# Newer versions, and what pyproject.toml asks for since; of PyPI alone, whatever is set here.
lock: $(VENV)/.installed-dev
	env -u UV_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS \
		$(BIN)/uv lock --no-config --default-index https://pypi.org/simple --upgrade

# Exactly the versions and files of uv.lock.
$(VENV)/.installed: pyproject.toml uv.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet \
		uv==$$(sed -n '/^name = "uv"/{n;s/version = "\(.*\)"/\1/p;}' uv.lock)
	$(UV) export --frozen --no-dev --output-file $(VENV)/core.txt
	$(UV) pip sync --python $(BIN)/python $(VENV)/core.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(UV) export --frozen --output-file $(VENV)/dev.txt
	$(UV) pip sync --python $(BIN)/python $(VENV)/dev.txt
	touch $@

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis
