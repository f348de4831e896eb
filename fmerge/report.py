"""What a run shows: tables in the terminal and in ``report.md``."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fmerge.errors import UserError
from fmerge.grouping import coefficient_name
from fmerge.objective import Objective, shortfalls
from fmerge.params import Params
from fmerge.pareto import Front
from fmerge.search import Pick, Trial

BASE, EXPERTS, AVERAGE, MERGE = "base", "experts", "plain average", "this merge"
REFITTED = ", heads refitted"
"""What follows a row's name where its model has refitted heads."""

REFERENCES = (BASE, BASE + REFITTED, EXPERTS, AVERAGE, AVERAGE + REFITTED)
"""The rows that a merge is measured against, in order."""


@dataclass(frozen=True)
class Row:
    """One model's test scores.

    Attributes:
        name: What the row is.
        scores: Task name to the mean of its metrics, at most 1.
    """

    name: str
    scores: Mapping[str, float]


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
            "rows": [{"name": row.name, "scores": dict(row.scores)} for row in self.rows],
        }

    def markdown(self) -> str:
        """Writes the report.

        Returns:
            Markdown text.
        """
        lines = [
            f"# {self.method} of {len(self.experts)} experts",
            "",
            f"- search: {self.search}, {self.trials} trials; "
            f"{'this' if self.built else 'the best'} is trial {self.best.index}"
            + (", built by its index" if self.built else ""),
            *self._coefficients(),
            *(f"- expert `{name}`: {path}" for name, path in self.experts.items()),
            *([f"- base: {self.base}"] if self.base else []),
            *([f"- task vectors: {self.vectors}"] if self.vectors else []),
        ]
        if self.rows:
            header, *rows = _cells(self.rows)
            lines += [
                f"- {self._chosen()}",
                *self._bounds(),
                *self._picked(),
                *(f"- {fact}" for fact in self.facts),
                "",
                f"Test {self.measure} in per cent:",
                "",
                "| " + " | ".join(header) + " |",
                "|---" * len(header) + "|",
                *("| " + " | ".join(row) + " |" for row in rows),
                "",
                "*kept*: the mean over tasks of the score divided by the expert's.",
                *self._refitted(),
                "",
                f"![objective by trial]({'../../' if self.built else ''}search.png)",
                *(self.front.markdown() if self.front else []),
            ]
        return "\n".join(lines) + "\n"

    def _chosen(self) -> str:
        objective = f"{100 * (self.best.objective or 0):.1f}"
        if self.built:
            return f"on the validation split {self.goal} is {objective}; the test split scored"
        return (
            f"the validation split chose, by {self.goal} (objective {objective}); the test split "
            "scored, once"
        )

    def _coefficients(self) -> list[str]:
        """One line, or one per expert where tensors are grouped."""
        values = self.best.coefficients
        if list(self.groups) == [""]:
            return [f"- coefficients: {', '.join(f'{n} {v:.4f}' for n, v in values.items())}"]
        lines = []
        for expert in self.experts:
            own = (f"{g} {values[coefficient_name(expert, g)]:.4f}" for g in self.groups)
            lines.append(f"- coefficients of {expert}: {', '.join(own)}")
        return lines

    def _bounds(self) -> list[str]:
        bounds = self.goal.bounds
        if not bounds:
            return []
        least = ", ".join(f"{task} {100 * bound:.1f}" for task, bound in bounds.items())
        short = shortfalls(self.best.metrics, bounds)
        which = "this trial" if self.built else "the best trial"
        if not short:
            return [f"- at least on validation: {least}; {which} keeps to that"]
        missing = ", ".join(f"{task} by {100 * value:.1f}" for task, value in short.items())
        if self.built:
            return [f"- at least on validation: {least}; this trial falls short: {missing}"]
        return [
            f"- at least on validation: {least}; NO TRIAL kept to that, and the best is the one "
            f"that falls short by least: {missing}"
        ]

    def _refitted(self) -> list[str]:
        if not any(row.name.endswith(REFITTED) for row in self.rows):
            return []
        examples = "all" if self.refit_examples is None else f"at most {self.refit_examples}"
        where = {
            "end": "; the merge is saved with these heads",
            "trials": "; the search scored with such heads, and the merge is saved with them",
        }
        return [
            "",
            f"*heads refitted*: each task's last linear layer is fitted to the body on {examples} "
            f"of its training examples{where.get(self.refit_heads, '')}.",
        ]

    def _picked(self) -> list[str]:
        if self.pick is None:
            return []
        best, pick = self.best, self.pick
        predicted = f"{100 * pick.mean:.1f} ± {100 * pick.error:.1f} predicted"
        same = "the same trial" if pick.trial.index == best.index else f"trial {pick.trial.index}"
        return [
            f"- observed best: trial {best.index}, {100 * (best.objective or 0):.1f}, which was "
            f"kept; the search's model would have kept {same}, {predicted}"
        ]


def score_table(rows: Sequence[Row], title: str) -> Table:
    """Lays out test scores for the terminal.

    Args:
        rows: The models compared, the experts among them.
        title: The table's title.

    Returns:
        A rich table: a row a model; a column a task, the mean, and the share kept.
    """
    table = Table(title=title)
    header, *lines = _cells(rows)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line, row in zip(lines, rows, strict=True):
        table.add_row(*line, style=None if _is_reference(row.name) else "bold")
    return table


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    experts = next(row for row in rows if row.name == EXPERTS).scores
    lines = [["", *experts, "mean", "kept"]]
    for row in rows:
        shares = [row.scores[task] / experts[task] for task in experts if experts[task]]
        kept = f"{100 * sum(shares) / len(shares):.1f}" if shares else "-"
        scores = [row.scores[task] for task in experts]
        percent = [f"{100 * score:.1f}" for score in [*scores, sum(scores) / len(scores)]]
        lines.append([row.name, *percent, kept])
    return lines


def read_references(folder: Path) -> list[Row]:
    """Reads back what a run's merge was measured against.

    Args:
        folder: The run's folder.

    Returns:
        The rows of ``scores.json`` but for the merge's own; none where there is no such file.
    """
    path = folder / "scores.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return [Row(row["name"], row["scores"]) for row in rows if row["name"] in REFERENCES]


def compare(folders: Sequence[Path]) -> Table:
    """Lays out the merges of several runs over the same experts in one table.

    Args:
        folders: Folders that ``fmerge merge`` wrote.

    Returns:
        A rich table: what the merges are measured against, then the best of each run.

    Raises:
        UserError: If there is no folder, one holds no scores, or the runs have other experts or
            refitted the references' heads otherwise.
    """
    if not folders:
        raise UserError("name the folders of the merges to compare")
    rows: dict[str, Row] = {}
    measure = "accuracy"
    for folder in folders:
        path = folder / "scores.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; name folders of merges that were scored")
        record = json.loads(path.read_text(encoding="utf-8"))
        measure = record.get("measure", measure)
        for row in record["rows"]:
            name = _among_others(row["name"], record)
            before = rows.setdefault(name, Row(name, row["scores"]))
            if name == EXPERTS and row["scores"] != before.scores:
                raise UserError(f"{folder}: its experts score otherwise than those before it")
            if REFITTED in name and _is_reference(name) and row["scores"] != before.scores:
                raise UserError(
                    f"{folder}: its row '{name}' scores otherwise than that of those before it; "
                    "compare merges of one base and one --refit_seed"
                )
    references = sorted(filter(_is_reference, rows), key=lambda name: REFERENCES.index(_kind(name)))
    ordered = [rows.pop(name) for name in references]
    return score_table([*ordered, *rows.values()], f"Test {measure}, %")


def _among_others(name: str, record: Mapping[str, Any]) -> str:
    """Names a run's row in a table over several runs."""
    if name.startswith(MERGE):
        searched = " for refitted heads" if record.get("refit_heads") == "trials" else ""
        built = f", trial {record['trial']}" if "trial" in record else ""
        name = f"{record['method']}, {record['search']}{searched}{built}{name.removeprefix(MERGE)}"
    examples = record.get("refit_examples")
    return f"{name} on {examples}" if name.endswith(REFITTED) and examples else name


def _kind(name: str) -> str:
    return name.partition(" on ")[0]


def _is_reference(name: str) -> bool:
    return _kind(name) in REFERENCES


def fisher_table(values: Params, title: str) -> Table:
    """Lays out a Fisher's mean by layer.

    Args:
        values: F by parameter name.
        title: The table's title.

    Returns:
        A rich table: layer, entries, mean, share of the total.
    """
    layers: dict[str, list[str]] = {}
    for name in values:
        layers.setdefault(layer_of(name), []).append(name)
    total = sum(float(tensor.double().sum()) for tensor in values.values())
    table = Table(title=title)
    table.add_column("layer", no_wrap=True)
    for column in ("entries", "mean Fisher", "share, %"):
        table.add_column(column, justify="right")
    for layer, names in layers.items():
        entries = sum(values[name].numel() for name in names)
        part = sum(float(values[name].double().sum()) for name in names)
        share = 100 * part / total if total else 0.0
        table.add_row(layer, f"{entries:,}", f"{part / entries:.2e}", f"{share:.1f}")
    return table


def layer_of(name: str) -> str:
    """Cuts a parameter's name to its layer.

    Args:
        name: For instance ``bert.encoder.layer.0.output.dense.weight``.

    Returns:
        Up to the first number (``bert.encoder.layer.0``), else up to two parts.
    """
    numbered = re.match(r"(.*?\.\d+)\.", name)
    if numbered:
        return numbered.group(1)
    return ".".join(name.split(".")[:-1][:2]) or name


def main(*folders: Path) -> None:
    """Prints the merges of several runs in one table.

    Args:
        folders: Folders that ``fmerge merge`` wrote, with the same experts.
    """
    Console().print(compare(folders))


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except UserError as error:
        sys.stderr.write(f"fmerge: error: {error}\n")
        sys.exit(2)
