# make quickstart   environment, three experts, their Fishers, three merges, one table
# make language-example  a tiny language model, three experts, four merges, one table
# make vision-example  the same of images: a vision transformer on scikit-learn's digits
# make test         the suite, but for its slow tests
# make slow         those: lost processes, hundreds of trials, a T5 from scratch
# make sweep        every text architecture of transformers through every command
# make lint         style, types, import layers and sizes
# make coverage     the suite, and how much of the package it runs
# make lowest       unit tests on the lowest versions that pyproject.toml declares
# make bare         the package without its extras: every module, the tests that need none
# make docs         the documentation as a site, in build/site; every link is checked
# make dist         wheel and sdist of the checked-out version, in dist/, checked
# make clean        forget the quickstart's runs and the sweep's

PYTHON ?= python3
BIN := .venv/bin
LANGUAGE := runs/language
RUNS := runs/quickstart
CONFIGS := configs/quickstart
QUESTIONS := description parameter code
LIBRARIES := sklearn sympy torch
FMERGE := $(BIN)/fmerge

# the folders of unit tests: what a change of versions would break shows in them
UNIT := $(addprefix tests/,methods fisher search store data modules report evaluation)
# the lowest torch declared is older; this is the one build that the bounds were tried with
TORCH ?= 2.13.0

.PHONY: quickstart language-example vision-example test slow sweep lint coverage lowest bare docs dist clean
.DELETE_ON_ERROR:

quickstart: $(RUNS)/average/report.md $(RUNS)/fisher_merge/report.md $(RUNS)/auto/report.md
	@$(FMERGE) compare $(^D)
	@echo "Merged models: $(RUNS)/*/merged/  reports: $(RUNS)/*/report.html"

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

slow: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# resumes where it was stopped; clean forgets it
sweep: .venv/installed
	$(BIN)/python -m tests.architectures.sweep --log runs/sweep.jsonl --table docs/architectures.md

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/sizes.py

coverage: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" \
	  --cov fmerge --cov-branch --cov-report term:skip-covered

# other versions have other warnings: they are shown here, and errors only in the other targets
lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" -W default $(UNIT)
	.venv-lowest/bin/fmerge --help

bare: .venv-bare/installed
	.venv-bare/bin/python .ci/import_all.py
	.venv-bare/bin/python -m pytest -m "not slow" -W default $(UNIT)
	.venv-bare/bin/fmerge --help

# material warns of a later mkdocs, which is not used
docs: .venv/documented
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file docs/mkdocs.yml
	@echo "The site: build/site/index.html"

dist: .venv/installed
	$(BIN)/pip install --quiet --no-compile --constraint .ci/constraints.txt --editable '.[release]'
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(RUNS) $(LANGUAGE) $(DIGITS) runs/sweep.jsonl

.venv/installed: pyproject.toml .ci/constraints.txt
	$(ENVIRONMENT)
	$(BIN)/pip install --quiet --no-compile --constraint .ci/constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $@

.venv/documented: .venv/installed
	$(BIN)/pip install --quiet --no-compile --constraint .ci/constraints.txt --editable '.[docs]'
	@touch $@

.venv-lowest/installed: pyproject.toml .ci/lowest.py
	$(ENVIRONMENT)
	$(@D)/bin/python .ci/lowest.py --torch $(TORCH) > $(@D)/constraints.txt
	$(@D)/bin/pip install --quiet --no-compile --constraint $(@D)/constraints.txt --editable '.[demo,hdf5,test]'
	@touch $@

.venv-bare/installed: pyproject.toml .ci/constraints.txt
	$(ENVIRONMENT)
	$(@D)/bin/pip install --quiet --no-compile --constraint .ci/constraints.txt --editable . pytest hypothesis
	@touch $@

define ENVIRONMENT
@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
  || { echo "Python 3.11 to 3.13 is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
$(PYTHON) -m venv $(@D)
endef

$(RUNS)/%/expert/config.json: $(CONFIGS)/fit.yaml $(CONFIGS)/%.yaml | .venv/installed
	$(FMERGE) fit --config $(CONFIGS)/fit.yaml --config $(CONFIGS)/$*.yaml \
	  --output $(RUNS)/$* --overwrite true

$(RUNS)/%/fisher.safetensors: $(RUNS)/%/expert/config.json
	$(FMERGE) fisher --config $(CONFIGS)/$*.yaml --expert $(RUNS)/$*/expert \
	  --examples 64 --output $@ --overwrite true

FISHERS := $(QUESTIONS:%=$(RUNS)/%/fisher.safetensors)
MERGE = $(FMERGE) merge --config $(CONFIGS)/merge.yaml --output $(@D) --overwrite true

$(RUNS)/average/report.md: $(FISHERS) $(CONFIGS)/merge.yaml
	$(MERGE) --method Average

$(RUNS)/fisher_merge/report.md: $(FISHERS) $(CONFIGS)/merge.yaml
	$(MERGE) --method FisherMerge --baselines experts \
	  --optimizer.search AxSearch --optimizer.search.trials 8

$(RUNS)/auto/report.md: $(FISHERS) $(CONFIGS)/merge.yaml
	$(MERGE) --method Auto --baselines experts

# language models: the experts of other libraries go on from one that was trained on all
language-example: $(foreach one,average ties fisher_merge df_merge,$(LANGUAGE)/$(one)/report.md)
	@$(BIN)/python -m fmerge.report.score_table $(^D)
	@echo "100 / perplexity. Merged models: $(LANGUAGE)/*/merged/"

$(LANGUAGE)/start/config.json: configs/language/start.py | .venv/installed
	$(BIN)/python configs/language/start.py --output $(@D)

$(LANGUAGE)/base/expert/config.json: $(LANGUAGE)/start/config.json configs/language/fit.yaml
	$(FMERGE) fit --config configs/language/fit.yaml --config configs/language/all.yaml \
	  --model.path $(LANGUAGE)/start --trainer.max_epochs 4 \
	  --output $(LANGUAGE)/base --overwrite true

$(LIBRARIES:%=$(LANGUAGE)/%/expert/config.json): $(LANGUAGE)/%/expert/config.json: \
  $(LANGUAGE)/base/expert/config.json configs/language/%.yaml
	$(FMERGE) fit --config configs/language/fit.yaml --config configs/language/$*.yaml \
	  --output $(LANGUAGE)/$* --overwrite true

$(LANGUAGE)/%/fisher.safetensors: $(LANGUAGE)/%/expert/config.json
	$(FMERGE) fisher --config configs/language/$*.yaml --expert $(LANGUAGE)/$*/expert \
	  --model TextGenerator --estimator sampled --examples 256 --output $@ --overwrite true

LANGUAGE_FISHERS := $(LIBRARIES:%=$(LANGUAGE)/%/fisher.safetensors)
LANGUAGE_MERGE = $(FMERGE) merge --config configs/language/all.yaml \
  --config configs/language/merge.yaml --output $(@D) --overwrite true
LANGUAGE_SEARCH := --optimizer.search.trials 8

$(LANGUAGE)/average/report.md: $(LANGUAGE_FISHERS) configs/language/merge.yaml
	$(LANGUAGE_MERGE) --method Average

$(LANGUAGE)/ties/report.md: $(LANGUAGE_FISHERS) configs/language/merge.yaml
	$(LANGUAGE_MERGE) --method TIES --baselines experts $(LANGUAGE_SEARCH)

$(LANGUAGE)/fisher_merge/report.md: $(LANGUAGE_FISHERS) configs/language/merge.yaml
	$(LANGUAGE_MERGE) --method FisherMerge --baselines experts $(LANGUAGE_SEARCH)

$(LANGUAGE)/df_merge/report.md: $(LANGUAGE_FISHERS) configs/language/merge.yaml
	$(LANGUAGE_MERGE) --method DFMerge --baselines experts $(LANGUAGE_SEARCH)

# images: a base trained on scikit-learn's digits, experts on changed ones, three merges, one table
DIGITS := runs/digits
CHANGES := rotated inverted shifted
EXPERTS := $(CHANGES:%=$(DIGITS)/%/expert/config.json)
DIGITS_FIT = $(FMERGE) fit --config configs/digits/fit.yaml --overwrite true
DIGITS_MERGE = $(FMERGE) merge --config configs/digits/merge.yaml --output $(@D) --overwrite true

vision-example: $(addprefix $(DIGITS)/,average/report.md df_merge/report.md featcal/report.md)
	@$(BIN)/python -m fmerge.report.score_table $(^D)
	@echo "Merged models: $(DIGITS)/*/merged/  reports: $(DIGITS)/*/report.html"

$(DIGITS)/untrained/config.json: benchmarks/digits.py | .venv/installed
	$(BIN)/python benchmarks/digits.py --output $(@D)

$(DIGITS)/plain/expert/config.json: $(DIGITS)/untrained/config.json configs/digits/plain.yaml
	$(DIGITS_FIT) --config configs/digits/plain.yaml --model.path $(DIGITS)/untrained \
	  --model.learning_rate 2.0e-3 --trainer.max_epochs 30 --output $(DIGITS)/plain

$(DIGITS)/%/expert/config.json: $(DIGITS)/plain/expert/config.json configs/digits/fit.yaml
	$(DIGITS_FIT) --config configs/digits/$*.yaml --output $(DIGITS)/$*

$(DIGITS)/average/report.md: $(EXPERTS) configs/digits/merge.yaml
	$(DIGITS_MERGE) --method Average

$(DIGITS)/df_merge/report.md: $(EXPERTS) configs/digits/merge.yaml
	$(DIGITS_MERGE) --method DFMerge --baselines experts --fisher.curve 3 \
	  --optimizer.search AxSearch --optimizer.search.trials 8 --optimizer.search.initial_trials 4

$(DIGITS)/featcal/report.md: $(EXPERTS) configs/digits/merge.yaml
	$(DIGITS_MERGE) --method FeatCal --baselines experts

.SECONDARY:
