"""Sentences of the API documentation that installed packages carry in their source files.

The sources are read with ``ast``; no package is imported.
"""

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from fmerge.errors import UserError

WORDS = range(6, 31)
"""Number of words of a sentence: shorter ones say little, longer ones are often lists."""

_SKIPPED_FOLDERS = {"tests", "test", "testing", "_testing", "externals", "vendored", "_vendor"}
_SKIPPED_SECTIONS = {"examples", "example", "references", "see also", "usage", "doctest"}
_UNDERLINE = re.compile(r"([=\-~^*#\"'+`])\1{2,}\s*$")
# doctests, directives, tables, lists, fields, decorators, footnotes, code fences, "name : type"
_NOT_PROSE = re.compile(
    r"\s*(>>>|\.\.\s|\.\.$|\||\+[-=]|[-*+•]\s|:|@|#|\[\d+\]|\d+[.)]\s|```|\$\s|\S+\s*:\s|-{3}|={3})"
)
_PARAMETER = re.compile(r"\s*\*{0,2}[\w, .*]+ : ")
_ROLE = re.compile(r":[a-zA-Z:+_-]+:(?=`)")
_TARGET = re.compile(r"`~?([^`<]*?)\s*(?:<[^`>]*>)?`_{0,2}")
_NAME = re.compile(r"[A-Za-z0-9_.]*(?:[A-Z0-9_]|[a-z]\.[a-z])[A-Za-z0-9_.]*")
_END = re.compile(r"(?<=[a-z0-9)\]`'\"][.!?])\s+(?=[A-Z])")
_SENTENCE = re.compile(r"(?!.*::)[A-Z][^<>{}\\=|$]*[.!?]")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|Figs?|Eqs?|Refs?|et al|etc|resp|approx|Sec|pp|Vol|No)|\b[A-Z])\.$"
)


def package_folder(name: str) -> Path:
    """Finds an installed package without importing it.

    Args:
        name: A top-level package.

    Returns:
        Its folder.

    Raises:
        UserError: If it is not installed.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package '{name}', whose documentation is wanted, is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def sentences(package: Path, paths: Iterable[str]) -> Iterator[str]:
    """Reads the documentation sentences of a part of a package.

    Args:
        package: The package's folder.
        paths: Files and folders below it.

    Yields:
        Sentences without mark-up, in a fixed order, repeated ones included.
    """
    for path in sources(package, paths):
        for docstring in _docstrings(path):
            for paragraph in _paragraphs(docstring):
                yield from _split(paragraph)


def key(sentence: str) -> str:
    """Reduces a sentence to a key by which near duplicates are found.

    Args:
        sentence: Any sentence.

    Returns:
        Its lower-case words. A name (a word with a capital, a digit, an underscore or an inner
        dot), or several in a row, is one mark: documentation repeats sentences with other names.
    """
    masked = _NAME.sub("0", sentence[:1].lower() + sentence[1:])
    return re.sub(r"[^a-z0]+", " ", re.sub(r"0(?:\W+0)*", "0", masked)).strip()


def sources(package: Path, paths: Iterable[str]) -> Iterator[Path]:
    """Lists the source files of a part of a package, without its tests.

    Args:
        package: The package's folder.
        paths: Files and folders below it.

    Yields:
        Files, in a fixed order.
    """
    for root in (package / name for name in paths):
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            parts = path.relative_to(package).parts
            if not _SKIPPED_FOLDERS & set(parts) and not path.name.startswith((
                "test_",
                "conftest",
            )):
                yield path


def parsed(path: Path) -> ast.Module:
    """Reads a source file.

    Args:
        path: The file.

    Returns:
        Its syntax tree.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        return ast.parse(path.read_text(encoding="utf-8"))


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _paragraphs(docstring: str) -> Iterator[str]:
    skipping = False
    for block in re.split(r"\n[ \t]*\n", docstring.expandtabs()):
        lines = block.strip("\n").split("\n")
        if len(lines) >= 2 and _UNDERLINE.match(lines[1].strip()):
            skipping = lines[0].strip().lower() in _SKIPPED_SECTIONS
            lines = lines[2:]
        elif re.fullmatch(r"[A-Za-z ]{3,30}:{1,2}", lines[0].strip()):
            skipping = lines[0].strip(" :").lower() in _SKIPPED_SECTIONS
            lines = lines[1:]
        if lines and not skipping:
            yield from _prose(lines)


def _prose(lines: list[str]) -> Iterator[str]:
    """Joins lines of equal indentation, except where a list or a table follows below them."""
    run: list[str] = []
    indent, stub = 0, -1  # stub: indentation of the latest line that the lines below continue
    for line in [*lines, ""]:
        depth = len(line) - len(line.lstrip())
        other = not line.strip() or bool(_NOT_PROSE.match(line))
        if other or depth != indent:
            if run and not 0 <= stub < indent:
                yield " ".join(" ".join(run).split())
            run, indent = [], depth
        if depth <= stub:
            stub = -1
        if other:
            described = _PARAMETER.match(line) or line.rstrip().endswith(":")
            stub = -1 if described or not line.strip() else depth
        else:
            run.append(line.strip())


def _split(paragraph: str) -> Iterator[str]:
    plain = _TARGET.sub(r"\1", _ROLE.sub("", paragraph.replace("``", "`"))).replace("**", "")
    parts: list[str] = []
    for chunk in _END.split(plain):
        if parts and _ABBREVIATION.search(parts[-1]):
            parts[-1] += " " + chunk
        else:
            parts.append(chunk)
    for part in parts:
        if len(part.split()) in WORDS and _SENTENCE.fullmatch(part):
            yield part
