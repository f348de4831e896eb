"""The table of docs/architectures.md, from the sweep's log."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

STEPS = ("read", "Average", "fisher", "FisherMerge", "RegMean", "fit", "test")
TITLES = {
    "classifier": "Sequence classification (`TextClassifier`)",
    "seq2seq": "Encoder-decoders (`RankChoice`)",
    "causal": "Causal language models (`RankChoice`)",
}
EXACT = ("exact", "exact, unpadded")
"""The cells that count as exact."""

INTRODUCTION = """# Architectures

Every text architecture of transformers {transformers} whose configuration has a tiny form, run
through fmerge's commands with random weights. `make sweep` writes this page.

- **read**: `fmerge.load_params` reads the tensors that transformers saved.
- **Average**: `fmerge merge`; *exact*: each entry equals the mean in float64, rounded once.
- **fisher**: `fmerge fisher`, and the exact Fisher in float64 against a loop over one example at a
  time, without padding, by transformers' forward pass alone; *exact*: the same to a relative
  1e-5 (and 1e-8 of the largest entry). *unpadded*: the model's answers depend on the padding of
  a batch, so that the batches compared are of one length each. *in float32*: the model gives no
  numbers in float64, and the comparison is in float32 (to 1e-5, and 1e-7 of the largest entry).
  *float32*: the model itself computes in float32 on its way, and the two differ by its rounding.
- **FisherMerge**, **RegMean**, **fit**, **test**: the commands; *works*: they end with exit code 0.
- A number is a refusal in one line, below the table.

{counts}
"""


def page(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Writes the page.

    Args:
        rows: KIND/TYPE to step to cell; or to ``not built`` and the reason.
    """
    built = {name: row for name, row in rows.items() if "not built" not in row}
    parts = [INTRODUCTION.format(transformers=version("transformers"), counts=_counts(built))]
    notes: dict[str, int] = {}
    for kind, title in TITLES.items():
        of_kind = {name: row for name, row in built.items() if name.startswith(f"{kind}/")}
        if of_kind:
            parts.append(f"## {title}\n\n{_table(of_kind, notes)}\n")
    if notes:
        parts.append("## Refusals\n")
        parts.append("\n".join(f"{number}. {line}" for line, number in notes.items()) + "\n")
    left = {name: row["not built"] for name, row in rows.items() if "not built" in row}
    if left:
        parts.append("## Without a tiny form\n")
        parts.append(_list(left))
    return "\n".join(parts)


def _counts(built: Mapping[str, Mapping[str, str]]) -> str:
    exact = {
        step: sum(row[step] in EXACT for row in built.values()) for step in ("Average", "fisher")
    }
    whole = sum("refused" not in " ".join(row.values()) for row in built.values())
    return (
        f"Of {len(built)} architectures, {whole} run through every command; the average of "
        f"{exact['Average']} and the Fisher of {exact['fisher']} are exact."
    )


def _table(rows: Mapping[str, Mapping[str, str]], notes: dict[str, int]) -> str:
    lines = ["| architecture | " + " | ".join(STEPS) + " |", "|---" * (len(STEPS) + 1) + "|"]
    for name, row in rows.items():
        cells = [_cell(row[step], notes) for step in STEPS]
        lines.append(f"| {name.split('/')[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: str, notes: dict[str, int]) -> str:
    if not value.startswith("refused: "):
        return value
    line = value.removeprefix("refused: ")
    return str(notes.setdefault(line, len(notes) + 1))


def _list(left: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {reason}" for name, reason in left.items()) + "\n"


def write(rows: Mapping[str, Mapping[str, str]], path: Path) -> None:
    """Writes the page to a temporary file and renames it."""
    part = path.with_suffix(".part")
    part.write_text(page(rows))
    part.replace(path)
