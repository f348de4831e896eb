"""Writes measured figures into a document, one section per benchmark."""

import re
import shlex
import sys
from pathlib import Path

from fmerge.store import write_text


def write_section(path: Path, title: str, text: str) -> None:
    """Replaces a section of a Markdown document, or adds it at the end, under the command run.

    Args:
        path: The document; made when it is missing.
        title: The section's heading, of the second level.
        text: What stands below it.
    """
    document = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    command = shlex.join(["python", *sys.argv])
    section = f"## {title}\n\n```bash\n{command}\n```\n\n{text.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(document):
        document = pattern.sub(lambda _: section + "\n", document)
    else:
        document = document.rstrip() + "\n\n" + section
    write_text(path, document.rstrip() + "\n")
