# make quickstart   environment, three experts, their Fishers, three merges, one table
# make test         the suite, but for its slow tests
# make slow         those: lost processes, hundreds of trials, a T5 from scratch
# make lint         style, types and the import floors
# make clean        forget the quickstart's runs

PYTHON ?= python3
BIN := .venv/bin
RUNS := runs/quickstart
CONFIGS := configs/quickstart
LIBRARIES := sklearn sympy torch
FMERGE := $(BIN)/fmerge

.PHONY: quickstart test slow lint clean
.DELETE_ON_ERROR:

quickstart: $(RUNS)/average/report.md $(RUNS)/fisher_merge/report.md $(RUNS)/df_merge/report.md
	@$(BIN)/python -m fmerge.report.score_table $(^D)
	@echo "Merged models: $(RUNS)/*/merged/  reports: $(RUNS)/*/report.html"

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

slow: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(RUNS)

.venv/installed: pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt torch
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $@

$(RUNS)/%/expert/config.json: $(CONFIGS)/fit.yaml $(CONFIGS)/%.yaml | .venv/installed
	$(FMERGE) fit --config $(CONFIGS)/fit.yaml --config $(CONFIGS)/$*.yaml \
	  --output $(RUNS)/$* --overwrite true

$(RUNS)/%/fisher.safetensors: $(RUNS)/%/expert/config.json
	$(FMERGE) fisher --config $(CONFIGS)/$*.yaml --expert $(RUNS)/$*/expert \
	  --examples 64 --output $@ --overwrite true

FISHERS := $(LIBRARIES:%=$(RUNS)/%/fisher.safetensors)
MERGE = $(FMERGE) merge --config $(CONFIGS)/merge.yaml --output $(@D) --overwrite true

$(RUNS)/average/report.md: $(FISHERS) $(CONFIGS)/merge.yaml
	$(MERGE) --method Average

$(RUNS)/fisher_merge/report.md: $(FISHERS) $(CONFIGS)/merge.yaml
	$(MERGE) --method FisherMerge --baselines experts \
	  --optimizer.search AxSearch --optimizer.search.trials 12 \
	  --optimizer.search.initial_trials 6

$(RUNS)/df_merge/report.md: $(FISHERS) $(CONFIGS)/merge.yaml
	$(MERGE) --method DFMerge --baselines experts \
	  --optimizer.search AxSearch --optimizer.search.trials 10 \
	  --optimizer.search.initial_trials 5

.SECONDARY:
