# make serve: install, prune the bundled model, serve it.   make test: install, check, test.

export PYTHONSAFEPATH = 1
BIN := .venv/bin
INSTALLED := .venv/.installed
DEVELOPER := .venv/.developer

.PHONY: serve test check kernels clean

serve: $(INSTALLED)
	$(BIN)/graftwork demo

test: check
	$(BIN)/python -m pytest

check: $(DEVELOPER)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

kernels: $(INSTALLED)
	$(BIN)/python -m multilora.build

clean:
	rm -rf .venv build dist *.egg-info kernels/multilora/*.so

$(INSTALLED): pyproject.toml constraints.txt scripts/install.sh
	scripts/install.sh
	touch $@

$(DEVELOPER): $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@
