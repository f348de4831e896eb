"""The tables of docs/limits.md, from the tables of the tests; run it to write them anew."""

import re

from tests.cli.bad_files import CHECKPOINTS, FISHERS, OTHERS
from tests.cli.bad_folders import FOLDERS
from tests.cli.run import ROOT
from tests.cli.test_bad_input import merge_cases

LIMITS = ROOT / "docs" / "limits.md"
_GROUPS = {
    "Hugging Face folders": [(name, says) for name, says, _ in FOLDERS],
    "Fisher files": [(name, says) for name, says, _ in FISHERS],
    "Lightning checkpoints": [(name, says) for name, says, _ in CHECKPOINTS],
    "Configurations, data, outputs": [(name, says) for name, says, _ in OTHERS],
    "Merges": [(name, says[0]) for name, (_, says) in merge_cases().items()],
}


def tables() -> str:
    """Markdown: what is given, and a part of the line that refuses it."""
    lines = []
    for title, rows in _GROUPS.items():
        lines += [f"### {title}", "", "| given | the line says |", "|---|---|"]
        lines += [f"| {name} | `{says.replace('`', '')}` |" for name, says in rows]
        lines.append("")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """The page with its tables made anew."""
    return re.sub(
        r"(?s)(<!-- tables -->\n).*(<!-- end -->)", lambda m: m[1] + tables() + m[2], text
    )


if __name__ == "__main__":
    LIMITS.write_text(with_tables(LIMITS.read_text(encoding="utf-8")), encoding="utf-8")
