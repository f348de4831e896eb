"""The whole way of two experts through the command line, for any kind of model."""

import json
from pathlib import Path

import yaml

from fmerge.cli.app import main

METHODS = ("Average", "TIES", "FisherMerge", "DFMerge")


def whole_way(folder: Path, base: str, tasks: dict[str, dict], model: dict, metrics: set[str]):
    """Fits two experts, estimates their Fishers and merges them by four methods with a search.

    Returns the folder of each merge. ``tasks`` are the data of a config by name, ``model`` that
    of a config, ``metrics`` what the report must name.
    """
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump({
            "model": model,
            "data": {"batch_size": 4, "tasks": tasks},
            "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
        })
    )
    experts = []
    for name, task in tasks.items():
        own = folder / f"{name}.yaml"
        own.write_text(yaml.safe_dump({"data": {"batch_size": 4, "tasks": {name: task}}}))
        shared = ["--model", model["class_path"], "--config", own, "--trainer.accelerator", "cpu"]
        quiet = ["--trainer.enable_progress_bar", "false"]
        run(
            *["fit", *shared, *quiet, "--model.path", base, "--output", folder / name],
            *["--model.learning_rate", "0.01", "--trainer.max_epochs", "2"],
        )
        fisher = folder / f"{name}.safetensors"
        expert = folder / name / "expert"
        run("fisher", *shared, *quiet, "--expert", expert, "--output", fisher)
        experts += [f"--experts.{name}.path={expert}", f"--experts.{name}.fisher={fisher}"]
    merged = {}
    for method in METHODS:
        output = folder / method
        options = [] if method == "Average" else _SEARCH
        run(
            *["merge", "--config", config, *experts, "--base", base, "--output", output],
            *["--method", method, "--baselines", "experts", *options],
        )
        report = (output / "report.md").read_text()
        assert all(one in report for one in metrics), method
        log = [json.loads(line) for line in (output / "trials.jsonl").read_text().splitlines()]
        assert log and all(one["status"] == "ok" for one in log)
        merged[method] = output / "merged"
    return merged


def run(*args):
    main([str(arg) for arg in args])


_SEARCH = ["--optimizer.search", "RandomSearch", "--optimizer.search.trials", "3"]
