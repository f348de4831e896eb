"""The end of a merge: what is tested, in which order, what is reported, and what is saved."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fmerge.evaluation.head_refit import Refitting
from fmerge.fisher import FisherSettings
from fmerge.merging.assembler import Assembler
from fmerge.methods import Average, FisherMerge, TaskArithmetic
from fmerge.runs import conclude, save
from fmerge.runs.conclude import Chosen, Conclusion
from fmerge.runs.stages import Candidate
from fmerge.search import Sobol, Trial
from fmerge.search.objective import Objective
from fmerge.search.space import SearchSpace
from tests.compare import assert_same

BASE = {"body": torch.tensor([1.0, 1.0])}
BODIES = {
    "x": {"body": torch.tensor([3.0, 1.0])},
    "y": {"body": torch.tensor([1.0, 5.0])},
    "donor": {"body": torch.tensor([2.0, 3.0])},
}
FISHERS = {name: {"body": torch.tensor([1.0, float(i)])} for i, name in enumerate(BODIES, 1)}
HEADS = {"x": {"head": torch.tensor([7.0])}, "y": {"head": torch.tensor([8.0])}}
REFIT = {"x": {"head": torch.tensor([0.5])}, "y": {"head": torch.tensor([0.25])}}
TRIALS = [
    Trial(0, {"x": 0.5, "y": 0.25, "donor": 0.0}, 0.6, {"x": 0.6, "y": 0.6}),
    Trial(1, {"x": 1.0, "y": 0.5, "donor": 0.0}, 0.9, {"x": 0.9, "y": 0.9}),
    Trial(2, {"x": 0.0, "y": 0.0, "donor": 1.0}, 0.7, {"x": 1.0, "y": 0.4}),
]


class Table:
    """What was tested, with the values that a body had at that moment."""

    def __init__(self, evaluator):
        self.evaluator, self.tested = evaluator, []
        evaluator.tables.append(self)

    def add(self, name, body, tasks):
        self.tested.append((name, body["body"].tolist(), list(tasks)))

    def record(self, name, test):
        self.tested.append((name, *test()))

    def rows(self):
        return ["the rows"]

    def comparisons(self, name):
        return [f"{name} compared"]


class Refitter:
    def __init__(self):
        self.fitted = []

    def fit(self, body):
        self.fitted.append(body["body"].tolist())
        return REFIT

    def score(self, body, split, heads):
        assert heads is REFIT and split == "test"
        return body["body"].tolist(), list(heads)


class Module(nn.Module):
    reads = None  # what makes inputs, which a card names for classes of transformers alone

    def __init__(self):
        super().__init__()
        self.networks = nn.ModuleDict()
        for name in HEADS:
            self.networks[name] = one = nn.Module()
            one.body = nn.Parameter(torch.zeros(2, dtype=torch.float16))
            one.head = nn.Parameter(torch.zeros(1, dtype=torch.float16))
        self.saved = []

    def task_model(self, name):
        return self.networks[name]

    def save(self, folder, cards):
        weights = {
            f"{name}.{key}": tensor.detach().clone()
            for name, one in self.networks.items()
            for key, tensor in one.named_parameters()
        }
        self.saved.append((folder, cards, weights))


def search():
    made = Sobol(trials=3)
    made.start(SearchSpace(tuple(BODIES)))
    for trial in TRIALS:
        made.tell(trial)
    return made


class Case:
    """One conclusion of made-up parts."""

    def __init__(self, monkeypatch, tmp_path, method=None, base=BASE, baselines="all",
                 when="off", can_refit=False, data=True, first=True):  # fmt: skip
        monkeypatch.setattr(conclude, "TestTable", Table)
        monkeypatch.setattr(conclude, "task_facts", lambda data, hashes: {"facts": hashes})
        monkeypatch.setattr(conclude, "split_facts", lambda *args: ["a fact"])
        monkeypatch.setattr(save, "model_card", lambda report, loader, name: f"card of {name}")
        method = method or TaskArithmetic()
        tasks = SimpleNamespace(
            tasks=dict.fromkeys(HEADS), metrics=dict.fromkeys(HEADS, ["accuracy"])
        )
        self.evaluator = SimpleNamespace(tables=[])
        self.refitter = Refitter()
        self.run = SimpleNamespace(
            trainer=SimpleNamespace(is_global_zero=first),
            module=Module(),
            data=tasks if data else None,
            method=method,
            settings=FisherSettings(),
            heads=HEADS,
            baselines=baselines,
            refitting=Refitting(when, 9),
            can_refit=can_refit,
            is_average=isinstance(method, Average), forms={}, stages=(), labels="all",
            adapter=None,
            ensemble=SimpleNamespace(
                bodies=BODIES, base=base, tasks=list(HEADS), names=list(BODIES),
                sources={name: f"made/{name}" for name in BODIES},
                base_source="made/base", fisher_origins=None, heads_merged=False, moving=(),
            ),
        )  # fmt: skip
        noted = {"expert": {"x": "12"}, "base": "34", "data": {"x": "56"}}
        self.folder = SimpleNamespace(
            path=tmp_path, noted=noted.get, point=lambda index: tmp_path / f"point {index}"
        )
        self.conclusion = Conclusion(
            run=self.run,
            evaluator=self.evaluator if data else None,
            refitter=self.refitter if can_refit or when != "off" else None,
        )

    def end(self, best=TRIALS[1], kept=(), **options):
        fishers = FISHERS if self.run.method.statistic else None
        assembler = Assembler(self.run.method, BASE, BODIES, lambda name, body: {}, fishers)
        candidate = Candidate(best, **dict(kept))
        chosen = Chosen(
            search=search(), goal=Objective(), candidate=candidate, trials=TRIALS, **options
        )
        return self.conclusion.conclude(chosen, assembler, self.folder)

    @property
    def tested(self):
        return self.evaluator.tables[0].tested


# θ₀ + Σ λτ of the best trial and of the runner-up; and the plain average of all three
BEST, RUNNER_UP, AVERAGE = [3.0, 3.0], [2.0, 3.0], [2.0, 3.0]
BOTH = ["x", "y"]
EXPERTS = [("experts", [3.0, 1.0], ["x"]), ("experts", [1.0, 5.0], ["y"])]


def test_all_baselines_are_tested_before_the_merge(monkeypatch, tmp_path):
    case = Case(monkeypatch, tmp_path)
    case.end()
    assert case.tested == [
        ("base", [1.0, 1.0], BOTH),
        *EXPERTS,
        ("plain average", AVERAGE, BOTH),
        ("runner-up", RUNNER_UP, BOTH),
        ("this merge", BEST, BOTH),
    ]
    assert case.refitter.fitted == []


def test_without_a_base_it_is_no_row(monkeypatch, tmp_path):
    case = Case(monkeypatch, tmp_path, base=None, method=FisherMerge())
    report = case.end()
    names = [name for name, *_ in case.tested]
    assert names == ["experts", "experts", "plain average", "runner-up", "this merge"]
    assert report.provenance.vectors == ""


def test_the_experts_alone(monkeypatch, tmp_path):
    case = Case(monkeypatch, tmp_path, baselines="experts")
    report = case.end()
    assert case.tested == [*EXPERTS, ("this merge", BEST, BOTH)]
    assert report.search.runner_up is None  # it was not tested


def test_the_average_needs_no_row_of_its_own(monkeypatch, tmp_path):
    case = Case(monkeypatch, tmp_path, method=Average())
    case.end()
    names = [name for name, *_ in case.tested]
    assert names == ["base", "experts", "experts", "runner-up", "plain average"]
    assert case.tested[-1][1] == AVERAGE


def test_of_an_average_whose_heads_stay_the_base_alone_is_refitted(monkeypatch, tmp_path):
    case = Case(monkeypatch, tmp_path, can_refit=True)
    case.end()
    names = [name for name, *_ in case.tested]
    assert names[:2] == ["base", "base, heads refitted"]
    assert sum("refitted" in name for name in names) == 1 and case.refitter.fitted == [[1.0, 1.0]]


def test_refitted_rows_follow_their_models_and_are_fitted_once(monkeypatch, tmp_path):
    case = Case(monkeypatch, tmp_path, when="end", can_refit=True)
    case.end()
    assert [(name, body) for name, body, _ in case.tested] == [
        ("base", [1.0, 1.0]),
        ("base, heads refitted", [1.0, 1.0]),
        *[(name, body) for name, body, _ in EXPERTS],
        ("plain average", AVERAGE),
        ("plain average, heads refitted", AVERAGE),
        ("runner-up", RUNNER_UP),
        ("runner-up, heads refitted", RUNNER_UP),
        ("this merge", BEST),
        ("this merge, heads refitted", BEST),
    ]
    assert case.refitter.fitted == [[1.0, 1.0], AVERAGE, RUNNER_UP, BEST]


def test_nothing_is_tested_without_data(monkeypatch, tmp_path):
    case = Case(monkeypatch, tmp_path, data=False)
    report = case.end()
    assert case.evaluator.tables == [] and report.tests.rows == [] == report.tests.comparisons
    assert report.provenance.tasks == {} and report.provenance.facts == []
    assert report.search.pick is None and case.run.module.saved


@pytest.mark.parametrize(("when", "heads"), [("off", HEADS), ("end", REFIT), ("trials", REFIT)])
def test_merged_models_are_saved_whole_in_float32(monkeypatch, tmp_path, when, heads):
    case = Case(monkeypatch, tmp_path, when=when, can_refit=True)
    case.end()
    ((folder, cards, weights),) = case.run.module.saved
    assert folder == tmp_path / "merged" and cards == {"x": "card of x", "y": "card of y"}
    expected = {f"{name}.head": heads[name]["head"] for name in HEADS}
    expected |= {f"{name}.body": torch.tensor(BEST) for name in HEADS}
    assert_same(weights, expected)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_trial_that_is_built_has_a_folder_of_its_own(monkeypatch, tmp_path):
    case = Case(monkeypatch, tmp_path)
    report = case.end(best=TRIALS[2], built=True)
    assert case.run.module.saved[0][0] == tmp_path / "point 2" / "merged"
    assert case.tested[-1] == ("this merge", [2.0, 3.0], BOTH)
    assert report.search.built and report.search.best is TRIALS[2]


def test_other_processes_write_nothing_and_tell_no_hashes(monkeypatch, tmp_path):
    case = Case(monkeypatch, tmp_path, first=False)
    report = case.end()
    assert case.run.module.saved == [] and case.tested[-1][0] == "this merge"
    assert report.provenance.hashes == {} == report.provenance.tasks


def test_the_parts_of_the_report(monkeypatch, tmp_path):
    case = Case(monkeypatch, tmp_path, method=FisherMerge(), when="end", can_refit=True)
    report = case.end(notes=["racing: half"])
    found = report.search
    assert (found.method, found.name, found.best) == ("FisherMerge", "Sobol", TRIALS[1])
    assert list(found.trials) == TRIALS and found.runner_up is TRIALS[2] and not found.built
    assert found.goal == Objective() and found.groups == [""] and found.front is None
    assert found.non_dominated == [TRIALS[1], TRIALS[2]]  # 0 is dominated; the best is first
    tests = report.tests
    assert tests.rows == ["the rows"] and tests.comparisons == ["this merge compared"]
    assert (tests.measure, tests.refit_heads, tests.refit_examples) == ("accuracy", "end", 9)
    origin = report.provenance
    assert origin.experts == {name: f"made/{name}" for name in BODIES}
    assert origin.base == "made/base" and origin.hashes == {"expert": {"x": "12"}, "base": "34"}
    assert origin.tasks == {"facts": {"x": "56"}} and origin.facts == ["a fact", "racing: half"]
    assert origin.parameters == {"floor": 1e-6, "favor_target": True, "normalize": True}
    # τ = (2, 0), (0, 4) and (1, 2) beside ‖θ₀‖ = √2
    assert origin.vectors.startswith("`x` 141.4%, `y` 282.8%, `donor` 158.1% of the base's norm")
    assert origin.fishers == conclude.summarise_fishers(FISHERS)


def test_other_metrics_are_scores(monkeypatch, tmp_path):
    case = Case(monkeypatch, tmp_path)
    case.run.data.metrics = {"x": ["accuracy"], "y": ["f1"]}
    report = case.end()
    assert report.tests.measure == "score" and report.provenance.fishers is None
