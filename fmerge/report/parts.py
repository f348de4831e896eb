"""The three parts of a merge's report: the search, the tests, and where all of it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fmerge.fisher.summary import FisherSummary
from fmerge.report.distances import LayerDistances
from fmerge.report.pareto_front import Front
from fmerge.report.reproduction import Reproduction
from fmerge.report.scores import Comparison, Row, TaskFacts
from fmerge.search import Belief, Pick, Trial
from fmerge.search.objective import Objective

if TYPE_CHECKING:
    import pandas


class Trials(list[Trial]):
    """The trials of a search, in order."""

    def to_dataframe(self) -> "pandas.DataFrame":
        """Lays out the trials as a table.

        Returns:
            A row a trial, with the columns ``trial``, ``status`` and ``objective``,
            ``coefficients.NAME`` for each coefficient λ and ``metrics.TASK`` for each task's
            score; NaN where a trial has no such value.
        """
        import pandas

        rows = [
            {
                "trial": trial.index,
                "status": trial.status,
                # not None: a column of failed trials alone would hold objects, no floats
                "objective": float("nan") if trial.objective is None else trial.objective,
                **{f"coefficients.{name}": value for name, value in trial.coefficients.items()},
                **{f"metrics.{task}": score for task, score in trial.metrics.items()},
            }
            for trial in self
        ]
        # an expert and its task share a name; the prefixes are the keys of trials.jsonl
        prefixes = ("coefficients.", "metrics.")
        found = [dict.fromkeys(k for row in rows for k in row if k.startswith(p)) for p in prefixes]
        columns = ["trial", "status", "objective", *found[0], *found[1]]
        return pandas.DataFrame(rows, columns=columns)


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What one part of a run brought.

    Attributes:
        name: Such as ``race``, ``search`` or ``polish``.
        seconds: How long it took.
        trials: How many trials it made.
        before: The best objective before it, if there was one.
        after: The best objective after it.
    """

    name: str
    seconds: float
    trials: int = 0
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What was searched, and what was chosen.

    Attributes:
        method: Name of the merging method.
        name: Name of the search.
        best: The trial that was chosen and saved.
        trials: All trials.
        goal: What the search maximised, and its bounds.
        groups: Names of the groups that have coefficients of their own.
        pick: The trial that the search's model would choose, if it has a model.
        sensitivity: Coefficient to the share of the objective's variance that the search's model
            ascribes to it, alone and together with others.
        front: The Pareto front, if there are several objectives.
        non_dominated: The trials whose validation scores no other trial dominates, the best
            first.
        runner_up: The second best trial, if it was tested.
        built: Whether ``best`` is a trial built by its index, not the choice of the search.
        ended: Why the search ended before its budget was spent; empty if it did not.
        warning: That the merge is below the plain average on validation; empty where it is not.
        stages: What each part of the run brought, where its parts were timed.
        measure: What the trials' scores are: ``accuracy``, ``score`` or, without labels,
            ``agreement``.
        beliefs: Coefficient to what the search's model predicts along it.
        seconds: Index of a trial to the time it took, where it is known.
    """

    method: str
    name: str
    best: Trial
    trials: Trials
    goal: Objective = Objective()
    groups: Sequence[str] = ("",)
    pick: Pick | None = None
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    front: Front | None = None
    non_dominated: Sequence[Trial] = ()
    runner_up: Trial | None = None
    built: bool = False
    ended: str = ""
    warning: str = ""
    stages: Sequence[StageFacts] = ()
    measure: str = "accuracy"
    beliefs: Mapping[str, Sequence[Belief]] = field(default_factory=dict)
    seconds: Mapping[int, float] = field(default_factory=dict)

    @property
    def bounded(self) -> bool:
        """Whether the objective lies in [0, 1]: a model of it may predict numbers beyond."""
        return self.measure != "score" and "retained" not in self.goal.kind


@dataclass(frozen=True, kw_only=True)
class TestOutcome:
    """The test scores of the merge and of its baselines.

    Attributes:
        rows: Test scores of the models compared; empty if nothing was scored.
        comparisons: Differences of the merge's scores and others'.
        measure: What the scores are: ``accuracy``, or ``score`` where tasks have other metrics.
        refit_heads: When heads were refitted: ``off``, ``end`` or ``trials``.
        refit_examples: How many training examples of each task heads were refitted on; all if
            None.
    """

    __test__: ClassVar[bool] = False  # for pytest, which takes Test* for a class of tests

    rows: Sequence[Row] = ()
    comparisons: Sequence[Comparison] = ()
    measure: str = "accuracy"
    refit_heads: str = "off"
    refit_examples: int | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What the merge was made of.

    Attributes:
        experts: Expert name to where it was read from.
        base: Where the base was read from, if there is one.
        hashes: SHA-256 of the weights of each ``expert`` and of the ``base``.
        tasks: What the tasks were scored on.
        facts: Sentences on the examples of the estimates, of the choice and of the test.
        parameters: The method's parameters.
        vectors: A sentence on the task vectors' norms and cosines; empty without a base.
        fishers: Where the mass lies of the Fishers that the merge was made with.
        saved: A sentence on what saving changed, as of an adapter; empty where it changed nothing.
        distances: How far the experts lie from the base and from each other, by layer.
        redo: What it takes to make the merge again.
    """

    experts: Mapping[str, str]
    base: str | None = None
    hashes: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, TaskFacts] = field(default_factory=dict)
    facts: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    vectors: str = ""
    fishers: FisherSummary | None = None
    saved: str = ""
    distances: LayerDistances | None = None
    redo: Reproduction | None = None

    def models(self) -> list[tuple[str, str, str]]:
        """Lists what was merged.

        Returns:
            Name, place and SHA-256 of each expert and of the base; an unknown hash is empty.
        """
        hashes = self.hashes.get("expert") or {}
        found = [(name, path, hashes.get(name, "")) for name, path in self.experts.items()]
        return found + ([("base", self.base, self.hashes.get("base") or "")] if self.base else [])
