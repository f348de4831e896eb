"""What is calibrated of a run's merges, and that the plan counts it."""

import pytest

import fmerge
from fmerge.data import MultiTask
from fmerge.evaluation.passes import Pass
from fmerge.methods import FeatCal, Isotropic
from fmerge.runs.finish import BATCH_NORM_EXAMPLES, calibration_of
from fmerge.runs.merge import MergeRun
from fmerge.runs.pass_plan import PassPlan
from tests.merging.test_buffers import Own, module, tasks

__all__ = ["module"]  # a fixture


@pytest.fixture
def merge(module, tmp_path, monkeypatch):
    """Merges two networks with batch norms: the run, its passes, those planned, the facts."""
    found, original = [], MergeRun.run

    def run(self, optimizer, search, *args):
        plan = PassPlan(self, search.budget, optimizer.needs_experts).passes()
        report = original(self, optimizer, search, *args)
        found.append((self, self.evaluator.made, plan, report.provenance.facts))
        return report

    monkeypatch.setattr(MergeRun, "run", run)

    def merged(data, method):
        trainer = fmerge.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[fmerge.MergeOptimizer(fmerge.search.Fixed())],
        )  # fmt: skip
        trainer.resolved_config = "method: a test's\n"
        trainer.merge(
            Own(**module.known), MultiTask(data, batch_size=100), experts={"x": "one", "y": "two"},
            method=method, output=tmp_path / "run",
        )  # fmt: skip
        return found[0]

    return merged


def test_running_statistics_are_computed_for_the_merge_and_the_average(merge):
    run, made, planned, facts = merge(tasks(train=True), Isotropic())
    calibration = calibration_of(run)
    assert calibration.method is None and calibration.tasks == {"x": "x", "y": "y"}
    assert made == planned and made[Pass("calibration", "x", "train", 200)] == 2
    end = f"computed on at most {BATCH_NORM_EXAMPLES} training examples of each task"
    assert f"batch norms: the merge's running statistics are {end}" in facts


def test_they_stay_averaged_without_training_examples(merge):
    run, made, planned, facts = merge(tasks(), Isotropic())
    assert calibration_of(run) is None and made == planned
    assert not any(one.cost == "calibration" for one in made)
    (fact,) = (fact for fact in facts if fact.startswith("batch norms"))
    assert fact.endswith("averaged, as task 'x' has no train split to compute them on")


def test_a_calibration_computes_them_on_its_own_examples(merge):
    run, made, planned, facts = merge(tasks(train=True), FeatCal(r=0))
    assert calibration_of(run).method is run.method
    assert made == planned and made[Pass("calibration", "y", "validation", 30)] == 1
    assert any(fact.endswith("computed on the examples of the calibration") for fact in facts)
