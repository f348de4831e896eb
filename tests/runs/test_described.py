"""Runs that were started from Python: their configuration, resumed, extended and built from."""

import enum
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fmerge.cli.app import main
from fmerge.data import MultiTask, Prompted, TextFiles
from fmerge.errors import UserError
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.methods import TIES, DFMerge, MergeMethod, TaskArithmetic
from fmerge.modules import TextClassifier
from fmerge.runs.described import described
from fmerge.search import Fixed, Search, Sobol
from fmerge.trainer import FMergeTrainer
from tests import tiny


class Steps(Search):
    """Keeps none of its arguments under their names, and changes while it runs."""

    def __init__(self, trials, propose, *, weights=None):
        super().__init__()
        self.left, self.rule, self._seen = trials, propose, []

    @property
    def budget(self):
        return self.left

    def ask(self):
        self._seen.append(len(self.history))
        return dict.fromkeys(self.names, self.rule(len(self.history)))


def halves(index):
    return 1 / (index + 2)


class Rule(MergeMethod):
    """A method around a function and a tensor."""

    def __init__(self, rule, share):
        self._how, self._s = rule, share

    def compute(self, inputs, out=None):
        pairs = list(zip(inputs.coefficients, inputs.experts, strict=True))
        return {k: self._how([self._s * c * e[k] for c, e in pairs]) for k in inputs.experts[0]}


def make(zoo, search, method=None, **options):
    data = MultiTask({
        task: TextFiles(**files, labels=tiny.LABELS[task]) for task, files in zoo.tasks.items()
    })
    trainer = FMergeTrainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[MergeOptimizer(search)],
    )  # fmt: skip
    settings = {
        "experts": zoo.experts, "base": zoo.base, "method": method or TaskArithmetic(),
        "baselines": "experts",
    }  # fmt: skip
    return trainer.merge(TextClassifier(), data, **settings | options)


def trials(output):
    return [json.loads(line) for line in (output / "trials.jsonl").read_text().splitlines()]


def test_values_and_objects_are_described():
    class Colour(enum.Enum):
        RED = 1

    found = described({
        "numbers": (np.float64(0.25), np.int64(3), torch.tensor(0.5), True, None),
        "array": np.array([1, 2]), "path": Path("a/b"), "kind": Colour.RED, "set": {"b", "a"},
        "dtype": torch.float16, "function": halves, "class": Sobol, "expert": Expert("x"),
        Colour.RED: "key",
    })  # fmt: skip
    assert yaml.safe_load(yaml.safe_dump(found)) == {
        "numbers": [0.25, 3, 0.5, True, None], "array": [1, 2], "path": "a/b", "kind": "RED",
        "set": ["a", "b"], "dtype": "torch.float16", "function": f"{__name__}.halves",
        "class": "fmerge.search.simple.Sobol", "Colour.RED": "key",
        "expert": {"path": "x", "fisher": None, "donor": False},
    }  # fmt: skip


def test_objects_of_any_kind_differ_where_their_arguments_do():
    tensor = torch.arange(3.0)
    same = [described(Rule(halves, tensor)), described(Rule(halves, tensor.clone()))]
    assert same[0] == same[1] and same[0]["init_args"]["share"]["shape"] == [3]
    assert described(Rule(halves, tensor + 1)) != same[0]
    assert described(Rule(sum, tensor)) != same[0]
    assert described(DFMerge(normalize=False))["init_args"]["normalize"] is False
    part = described(partial(halves, 3, x=1))["init_args"]
    assert part == {"func": f"{__name__}.halves", "args": [3], "keywords": {"x": 1}}
    steps = described(Steps(3, halves, weights={"a": 1}))
    arguments = {"trials": 3, "propose": f"{__name__}.halves", "weights": {"a": 1}}
    assert steps == {"class_path": f"{__name__}.Steps", "init_args": arguments}


def test_what_is_described_makes_an_equal_object(zoo):
    shipped = [
        TextFiles(**zoo.tasks["colour"], labels=["x", "y"]), Fixed({"a": 0.5}),
        Sobol(trials=3, seed=4), TIES(density=0.5), TextClassifier(zoo.base, max_length=9),
        Prompted(template="winogrande", splits={"validation": zoo.tasks["colour"]["train"]}),
    ]  # fmt: skip
    for one in shipped:
        found = described(one)
        again = type(one)(**found["init_args"])
        assert described(again) == found and found["class_path"].count(".") == 2


@pytest.mark.parametrize("kind", [pytest.param("listed", marks=pytest.mark.slow), "own"])
def test_a_run_from_python_is_built_from_and_extended(zoo, tmp_path, kind):
    output = tmp_path / "out"

    def search(count=2):
        return Sobol(trials=count) if kind == "listed" else Steps(count, halves)

    method = TaskArithmetic() if kind == "listed" else Rule(sum, torch.tensor(1.0))
    used = search()
    report = make(zoo, used, method, output=output)
    assert len([trial for trial in report.trials if not trial.stage]) == 2
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["experts"] == zoo.experts and config["base"] == zoo.base
    # with the very objects that have made the run, and with new ones
    for again, index in ((used, 0), (search(), 1)):
        built = make(zoo, again, method, output=output, build=index)
        assert built.best.index == index
        assert (output / "points" / str(index) / "merged" / "colour").is_dir()
    if kind == "listed":
        before = trials(output)
        # the plain average, which no trial of the search is, is the last of both
        assert len(make(zoo, search(3), method, output=output).trials) == 4
        assert trials(output)[:2] == before[:2]
        with pytest.raises(UserError, match="holds this very run, finished"):
            make(zoo, search(3), method, output=output)


def test_a_run_from_python_that_was_stopped_is_resumed(zoo, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole", tmp_path / "out"
    method = Rule(sum, torch.tensor([1.0]))
    make(zoo, Steps(3, halves), method, output=whole)
    ask, asked = Steps.ask, []

    def stopping(self):
        asked.append(1)
        if len(asked) == 3:
            raise RuntimeError("stopped")
        return ask(self)

    monkeypatch.setattr(Steps, "ask", stopping)
    with pytest.raises(RuntimeError, match="stopped"):
        make(zoo, Steps(3, halves), method, output=output)
    assert trials(output) == trials(whole)[:2]
    with pytest.raises(UserError, match=r"propose was .*halves and is builtins.float"):
        make(zoo, Steps(3, float), method, output=output)
    with pytest.raises(UserError, match=r"method.init_args.share.sha256 was "):
        make(zoo, Steps(3, halves), Rule(sum, torch.tensor([2.0])), output=output)
    make(zoo, Steps(3, halves), method, output=output)
    assert trials(output) == trials(whole) and len(asked) == 4


@pytest.mark.slow
def test_the_command_line_reads_the_configuration_of_a_run_from_python(zoo, tmp_path):
    output, again = tmp_path / "out", tmp_path / "again"
    make(zoo, Sobol(trials=2, seed=3), output=output)
    options = ["--output", str(again), "--trainer.enable_progress_bar", "false"]
    main(["merge", "--config", str(output / "config.yaml"), *options])
    assert trials(again) == trials(output)
