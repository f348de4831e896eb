"""A T5 from scratch: what a searched DF-Merge keeps of three experts, and a plain average."""

import json

import pytest

from benchmarks.made_up import TASKS, config, make
from fmerge.cli.app import main


@pytest.mark.slow
def test_searched_df_merge_keeps_more_than_the_plain_average(tmp_path, record_property):
    base, experts = make(tmp_path)
    bayes = ["--optimizer.search", "AxSearch", "--optimizer.search.trials", "30"]
    alone = {
        task: ["--optimizer.search", "Fixed", "--optimizer.search.coefficients", json.dumps(one)]
        for task in TASKS
        for one in [{name: float(name == task) for name in TASKS}]
    }
    runs = {"Average": [], "DFMerge": bayes} | alone
    best = {}
    for name, options in runs.items():
        main([
            *["merge", "--config", config(tmp_path, *TASKS), "--base", str(base)],
            *[f"--experts.{task}={path}" for task, path in experts.items()],
            *["--method", "Isotropic" if name in TASKS else name, *options],
            *["--baselines", "experts", "--output", str(tmp_path / f"merge_{name}")],
        ])
        lines = (tmp_path / f"merge_{name}" / "trials.jsonl").read_text().splitlines()
        made = [one for one in map(json.loads, lines) if "stage" not in one]  # by the search
        best[name] = max(made, key=lambda trial: trial["objective"])
    own = sum(best[task]["metrics"][task] for task in TASKS) / len(TASKS)
    average, searched = best["Average"]["objective"], best["DFMerge"]["objective"]
    record_property(
        "figure",
        "T5 from scratch, three made-up tasks, mean validation accuracy: "
        f"experts {own:.3f}, searched DF-Merge {searched:.3f}, plain average {average:.3f}",
    )
    assert average < searched < own
