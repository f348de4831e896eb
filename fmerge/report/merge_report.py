"""The result of a merge, as an object, as ``scores.json`` and as ``report.md``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmerge.report import sentences
from fmerge.report.fisher_tables import fisher_tables
from fmerge.report.headline import headline, own_rows
from fmerge.report.markdown import code, plain, sentence
from fmerge.report.parts import Provenance, SearchOutcome, TestOutcome, Trials
from fmerge.report.scores import Comparison, Row
from fmerge.report.search_tables import all_trials, heat_map
from fmerge.report.sections import (
    coefficient_table,
    comparison_table,
    score_table,
    stage_table,
    task_table,
    trial_table,
)
from fmerge.report.tables import Table, to_markdown
from fmerge.search import Trial


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """The result of a merge.

    Attributes:
        search: What was searched, and what was chosen.
        tests: The test scores of the merge and of its baselines.
        provenance: What the merge was made of.
    """

    search: SearchOutcome
    provenance: Provenance
    tests: TestOutcome = TestOutcome()

    @property
    def best(self) -> Trial:
        """The trial that was chosen and saved."""
        return self.search.best

    @property
    def trials(self) -> Trials:
        """All trials, in order."""
        return self.search.trials

    @property
    def rows(self) -> Sequence[Row]:
        """Test scores of the models compared; empty if nothing was scored."""
        return self.tests.rows

    @property
    def comparisons(self) -> Sequence[Comparison]:
        """Differences of the merge's test scores and others'."""
        return self.tests.comparisons

    @property
    def title(self) -> str:
        """What the report is of."""
        return f"{self.search.method} of {len(self.provenance.experts)} experts"

    def scores(self, title: str = "") -> Table:
        """Lays out the test scores.

        Args:
            title: What the table's title ends with.

        Returns:
            The table; there must be rows.
        """
        names = [row.name for row in own_rows(self.tests)]
        notes = [found] if (found := sentences.refitted(self.tests)) else []
        return score_table(self.rows, f"Test {self.tests.measure}, %{title}", names, notes)

    def differences(self) -> Table | None:
        """Lays out the differences of test scores.

        Returns:
            The table, if anything was compared.
        """
        if not self.comparisons:
            return None
        return comparison_table(self.comparisons, self.search.runner_up, bool(self.best.stage))

    def trade_off(self) -> Table | None:
        """Lays out the trials whose validation scores no other trial dominates.

        Returns:
            The table, if there are several tasks.
        """
        if len(self.best.metrics) < 2 or not self.search.non_dominated:
            return None
        return trial_table(self.search.non_dominated, self.best)

    def stages(self) -> Table | None:
        """Lays out what each part of the run brought.

        Returns:
            The table, if the parts were timed.
        """
        return stage_table(self.search.stages) if self.search.stages else None

    def record(self) -> dict[str, Any]:
        """Lists what ``scores.json`` holds, for tables over several runs.

        Returns:
            Plain values.
        """
        return {
            "method": self.search.method,
            "search": self.search.name,
            "trials": len(self.trials),
            "measure": self.tests.measure,
            "refit_heads": self.tests.refit_heads,
            "refit_examples": self.tests.refit_examples,
            **({"trial": self.best.index} if self.search.built else {}),
            "rows": [row.record() for row in self.rows],
            "comparisons": [one.record() for one in self.comparisons],
        }

    def markdown(self) -> str:
        """Writes the report.

        Returns:
            Markdown text.
        """
        found, front = self.provenance, self.search.front
        lines = [
            f"# {self.title}",
            "",
            *(f"{sentence(fact)}\n" for fact in self.headline()),
            *(f"- {sentence(fact)}" for fact in self.made()),
            *(f"- {sentence(fact)}" for fact in sentences.coefficients(self.search, found)),
            *(f"- expert {code(name)}: {plain(path)}" for name, path in found.experts.items()),
            *([f"- base: {plain(found.base)}"] if found.base else []),
            *([f"- task vectors: {sentence(found.vectors)}"] if found.vectors else []),
            *(f"- {sentence(fact)}" for fact in (found.redo.facts() if found.redo else [])),
        ]
        if self.rows:
            lines += [f"- {sentence(fact)}" for fact in self.choice()]
        for table in self._tables():
            lines += to_markdown(table)
        if self.rows:
            run = "../../" if self.search.built else ""  # a built trial lies in points/INDEX/
            lines += ["", f"![objective by trial]({run}search.png)"]
            lines += front.markdown() if front else []
        return "\n".join(lines) + "\n"

    def headline(self) -> list[str]:
        """Says what was merged, how well it does, and what was not shown.

        Returns:
            Sentences, of which only backticks are Markdown.
        """
        return headline(self.search, self.tests, self.provenance)

    def made(self) -> list[str]:
        """Says what was searched and found.

        Returns:
            Sentences, of which only backticks are Markdown.
        """
        return [
            *sentences.verdict(self.tests),
            *sentences.made(self.search, self.provenance),
        ]

    def choice(self) -> list[str]:
        """Says what was chosen and why.

        Returns:
            Sentences, of which only backticks are Markdown.
        """
        return sentences.choice(self.search, self.provenance)

    def _tables(self) -> list[Table]:
        """The tables of ``report.md``, in order."""
        search, found = self.search, self.provenance
        scored = [self.scores(), self.differences(), self.trade_off()] if self.rows else []
        tables = [table for table in [*scored, self.stages()] if table is not None]
        if search.sensitivity:
            tables.append(coefficient_table(self.best.coefficients, search.sensitivity))
        further = [
            heat_map(self.best, list(found.experts)),
            found.distances.table() if found.distances else None,
        ]
        tables += [table for table in further if table is not None]
        tables += fisher_tables(found.fishers) if found.fishers else []
        trials = None if search.built else all_trials(search, timed=False)
        tables += [trials] if trials is not None else []
        return tables + ([task_table(found.tasks)] if found.tasks else [])
