"""What it takes to make a merge again."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fmerge.report.tables import Cell, Column, Line, Table


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What it takes to make a merge again.

    Attributes:
        command: The exact command; empty for a run from Python.
        seed: Of ``--seed_everything``; None where there was none.
        versions: Package to version.
        machine: What the merge ran on: its parts to what they are.
        seconds: Wall time of this process until the report was written.
        earlier: Seconds of the trials that an interrupted run had made before.
    """

    command: str = ""
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    earlier: float = 0.0

    def facts(self) -> list[str]:
        """Says what two runs of one command have in common.

        Returns:
            Sentences.
        """
        seed = "no seed was set" if self.seed is None else f"seed {self.seed}"
        listed = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [
            "to redo: `fmerge merge --config config.yaml --output NEW`, with this folder's "
            f"`config.yaml` and a new folder; {seed}",
            f"versions: {listed}",
        ]

    def table(self) -> Table:
        """Lays out all of it.

        Returns:
            A row a fact.
        """
        rows = {
            "seed": "none" if self.seed is None else str(self.seed),
            **self.machine,
            **({} if self.seconds is None else {"wall time": duration(self.seconds)}),
            **({"before the interruption": duration(self.earlier)} if self.earlier else {}),
            **self.versions,
        }
        lines = [Line([Cell(name), Cell(value)]) for name, value in rows.items()]
        return Table("Machine and versions", [Column("", text=True)] * 2, lines)


def duration(seconds: float) -> str:
    """Writes a time.

    Args:
        seconds: The time.

    Returns:
        Such as ``12.3 s``, ``4 min 10 s`` or ``2 h 5 min``.
    """
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"
