# make serve: install, prune the bundled model, serve it.   make test: install, check, test.

export PYTHONSAFEPATH = 1
BIN := .venv/bin
INSTALLED := .venv/.installed
DEVELOPER := .venv/.developer
# in order: the groups that start engines come first and take longest
TESTS := $(BIN)/python -m pytest -n 2 --no-loadscope-reorder --durations=20

.PHONY: serve test postgresql check lint docs kernels clean

serve: $(INSTALLED)
	$(BIN)/graftwork demo

test: lint
	$(TESTS)

postgresql: $(DEVELOPER)
	$(TESTS) --database postgresql tests/service tests/jobs tests/e2e

check: lint
	scripts/audit.sh

lint: $(DEVELOPER)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(DEVELOPER)
	$(BIN)/python -m mkdocs build --strict

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
