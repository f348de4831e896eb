"""What a merge shows: a table in the terminal, and ``report.md``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from fmerge.fisher.summary import FisherSummary
from fmerge.report.markdown import code, plain, sentence
from fmerge.report.pareto_front import Front
from fmerge.report.score_table import score_table
from fmerge.report.scores import REFITTED, Comparison, Row, TaskFacts
from fmerge.report.sections import (
    comparison_lines,
    fisher_lines,
    score_lines,
    sensitivity_lines,
    task_lines,
    trade_lines,
)
from fmerge.search import Pick, Trial
from fmerge.search.objective import Objective, shortfalls
from fmerge.search.parameter_groups import coefficient_name


@dataclass(frozen=True)
class MergeReport:
    """The result of a merge.

    Attributes:
        method: Name of the merging method.
        search: Name of the search.
        best: The trial that was kept.
        trials: How many trials there were.
        experts: Expert name to where it was read from.
        base: Where the base was read from.
        rows: Test scores of the models compared; empty when the merge was not scored.
        goal: What the search maximised, and its bounds.
        groups: Names of the groups that have coefficients of their own.
        pick: The trial that the search's model would have kept, where it has a model.
        measure: What the scores are: ``accuracy``, or ``score`` where tasks have other metrics.
        vectors: How long the task vectors are and how alike, where there is a base.
        refit_heads: When heads were refitted: ``off``, ``end`` or ``trials``.
        refit_examples: How many training examples of each task heads were refitted on; all if
            None.
        facts: Sentences about what was estimated, chosen and scored on which examples.
        parameters: The method's parameters.
        comparisons: The merge against other rows.
        runner_up: The trial of that row.
        sensitivity: Coefficient to the share of the objective's variance that the search's model
            ascribes to it, alone and together with others.
        fishers: Where the Fishers lie that the kept merge was made with.
        tasks: What the tasks were scored on.
        non_dominated: The trials that no other beats on validation, the best first.
        hashes: SHA-256 of the weights of each ``expert`` and of the ``base``.
        front: The Pareto front, where there are several objectives.
        built: Whether ``best`` is not what the search chose, but a trial built by its index.
    """

    method: str
    search: str
    best: Trial
    trials: int
    experts: Mapping[str, str]
    base: str | None
    rows: Sequence[Row] = ()
    goal: Objective = Objective()
    groups: Sequence[str] = ("",)
    pick: Pick | None = None
    measure: str = "accuracy"
    vectors: str = ""
    refit_heads: str = "off"
    refit_examples: int | None = None
    facts: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    comparisons: Sequence[Comparison] = ()
    runner_up: Trial | None = None
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    fishers: FisherSummary | None = None
    tasks: Mapping[str, TaskFacts] = field(default_factory=dict)
    non_dominated: Sequence[Trial] = ()
    hashes: Mapping[str, Any] = field(default_factory=dict)
    front: Front | None = None
    built: bool = False

    def table(self) -> Table:
        """Lays out the scores for the terminal.

        Returns:
            A rich table.
        """
        return score_table(self.rows, f"Test {self.measure}, %: {self.method}, {self.search}")

    def record(self) -> dict[str, Any]:
        """Lists what ``scores.json`` keeps, for tables over several runs.

        Returns:
            Plain values.
        """
        return {
            "method": self.method,
            "search": self.search,
            "trials": self.trials,
            "measure": self.measure,
            "refit_heads": self.refit_heads,
            "refit_examples": self.refit_examples,
            **({"trial": self.best.index} if self.built else {}),
            "rows": [row.record() for row in self.rows],
            "comparisons": [one.record() for one in self.comparisons],
        }

    def markdown(self) -> str:
        """Writes the report.

        Returns:
            Markdown text.
        """
        lines = [
            f"# {self.method} of {len(self.experts)} experts",
            "",
            *(f"- {sentence(fact)}" for fact in (*self.made(), *self._coefficients())),
            *(f"- expert {code(name)}: {plain(path)}" for name, path in self.experts.items()),
            *([f"- base: {plain(self.base)}"] if self.base else []),
            *([f"- task vectors: {sentence(self.vectors)}"] if self.vectors else []),
        ]
        if self.rows:
            lines += [
                *(f"- {sentence(fact)}" for fact in self.choice()),
                *score_lines(self.rows, self.measure),
                *(["", f"*heads refitted*: {found}"] if (found := self.refitted()) else []),
                *comparison_lines(self.comparisons),
                *trade_lines(self.non_dominated, self.best),
            ]
        lines += [
            *sensitivity_lines(self.sensitivity),
            *fisher_lines(self.fishers),
            *task_lines(self.tasks),
        ]
        if self.rows:
            lines += ["", f"![objective by trial]({'../../' if self.built else ''}search.png)"]
            lines += self.front.markdown() if self.front else []
        return "\n".join(lines) + "\n"

    def made(self) -> list[str]:
        """Says what was searched and found.

        Returns:
            Sentences, of which only backticks are Markdown.
        """
        which = "this is trial {}, built by its index" if self.built else "the best is trial {}"
        made = f"search: {self.search}, {self.trials} trials; {which.format(self.best.index)}"
        given = ", ".join(f"{name} {value}" for name, value in self.parameters.items())
        return [made, *([f"parameters of {self.method}: {given}"] if given else [])]

    def models(self) -> list[tuple[str, str, str]]:
        """Lists what was merged.

        Returns:
            Name, place and SHA-256 of each expert and of the base; the hash is empty where it is
            not known.
        """
        hashes = self.hashes.get("expert") or {}
        found = [(name, path, hashes.get(name, "")) for name, path in self.experts.items()]
        return found + ([("base", self.base, self.hashes.get("base") or "")] if self.base else [])

    def choice(self) -> list[str]:
        """Says what was kept and why.

        Returns:
            Sentences, of which only backticks are Markdown.
        """
        objective = f"{100 * (self.best.objective or 0):.1f}"
        chosen = (
            f"the validation split chose, by {self.goal} (objective {objective}); the test split "
            "scored, once"
        )
        if self.built:
            chosen = f"on the validation split {self.goal} is {objective}; the test split scored"
        return [
            chosen,
            *self.bounds_kept(),
            *self._picked(),
            *self.facts,
        ]

    def _coefficients(self) -> list[str]:
        """One line, or one per expert where tensors are grouped."""
        values = self.best.coefficients
        if list(self.groups) == [""]:
            return [f"coefficients: {', '.join(f'{n} {v:.4f}' for n, v in values.items())}"]
        lines = []
        for expert in self.experts:
            own = (f"{g} {values[coefficient_name(expert, g)]:.4f}" for g in self.groups)
            lines.append(f"coefficients of {expert}: {', '.join(own)}")
        return lines

    def bounds_kept(self) -> list[str]:
        """Says which bounds there were, and by how much they were missed.

        Returns:
            A sentence, of which only backticks are Markdown; none where there were no bounds.
        """
        bounds = self.goal.bounds
        if not bounds:
            return []
        least = ", ".join(f"{task} {100 * bound:.1f}" for task, bound in bounds.items())
        short = shortfalls(self.best.metrics, bounds)
        which = "this trial" if self.built else "the best trial"
        if not short:
            return [f"at least on validation: {least}; {which} keeps to that"]
        missing = ", ".join(f"{task} by {100 * value:.1f}" for task, value in short.items())
        if self.built:
            return [f"at least on validation: {least}; this trial falls short: {missing}"]
        return [
            f"at least on validation: {least}; NO TRIAL kept to that, and the best is the one "
            f"that falls short by least: {missing}"
        ]

    def refitted(self) -> str:
        """Says what refitted heads are.

        Returns:
            A sentence; nothing where no row has them.
        """
        if not any(row.name.endswith(REFITTED) for row in self.rows):
            return ""
        examples = "all" if self.refit_examples is None else f"at most {self.refit_examples}"
        where = {
            "end": "; the merge is saved with these heads",
            "trials": "; the search scored with such heads, and the merge is saved with them",
        }
        return (
            f"each task's last linear layer is fitted to the body on {examples} of its training "
            f"examples{where.get(self.refit_heads, '')}."
        )

    def _picked(self) -> list[str]:
        if self.pick is None:
            return []
        best, pick = self.best, self.pick
        predicted = f"{100 * pick.mean:.1f} ± {100 * pick.error:.1f} predicted"
        same = "the same trial" if pick.trial.index == best.index else f"trial {pick.trial.index}"
        return [
            f"observed best: trial {best.index}, {100 * (best.objective or 0):.1f}, which was "
            f"kept; the search's model would have kept {same}, {predicted}"
        ]
