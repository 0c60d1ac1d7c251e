# make demo               the whole journey on a generated set (or your own images: make demo DATA=~/Pictures)
# make test               the whole test suite
# make gate               whether the loader has become slower, in about a minute
# All set up .venv first, once.

PYTHON ?= python3
DATA ?=
VENV := .venv
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test gate setup clean

demo: setup
	$(VENV)/bin/headrace demo $(if $(DATA),--data "$(DATA)")

test: setup
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

gate: setup
	$(VENV)/bin/python -m headrace.benchmarks.gate

setup: $(VENV)/.ready

$(VENV)/.ready: setup.py pyproject.toml tools/setup.sh
	bash tools/setup.sh $(PYTHON) $(VENV)
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info runs/demo runs/demo-*
