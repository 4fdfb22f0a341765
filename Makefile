PYTHON ?= python

.PHONY: style check test test-slow smoke demo docs space

style:  ## format and sort imports
	ruff check --fix .
	ruff format .

check:  ## what style would change, without changing it
	ruff check .
	ruff format --check .

test:  ## the suite of every commit (under 12 minutes on two cores)
	$(PYTHON) -m pytest -n auto

test-slow:  ## everything, long runs and the browser included
	$(PYTHON) -m pytest -m ""

smoke:  ## train and evaluate a tiny model for a minute on the CPU
	rm -rf outputs/smoke
	$(PYTHON) -m hf_ris train lts/refscenes training.max_steps=20 data.size=64 data.validation_size=16 output_dir=outputs/smoke
	$(PYTHON) -m hf_ris evaluate --model outputs/smoke/last --data refscenes --split test --size 16

demo:  ## the Space, at http://127.0.0.1:7860
	$(PYTHON) space/app.py

docs:  ## pages of the API in outputs/docs (needs pip install -e ".[dev]")
	$(PYTHON) docs/api.py

OUT ?= outputs/space
space:  ## a folder that a Hub Space installs and starts from alone: make space OUT=folder
	$(PYTHON) space/assemble.py $(OUT)
