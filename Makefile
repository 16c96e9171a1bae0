# Each target makes what it needs, the virtual environment included.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
# A worker a core; a file's tests share what they set up.
WORKERS ?= -n auto --dist loadfile

.PHONY: demo test test-slow check

demo: $(VENV)/installed
	$(VENV)/bin/python experiments/demo.py $(DEMO)

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest $(WORKERS) --durations=30 -m "not slow"

test-slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest $(WORKERS) --durations=10 -m slow

check: $(VENV)/installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

# Last of all the marker, so that an interrupted installation is begun again.
$(VENV)/installed: requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@
