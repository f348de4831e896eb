"""Checks the package's limits on size, one line for each breach; exits with 1 where there is one.

A file has at most 300 lines, a function at most 50 (its docstring counted, its decorators not), a
call at most 6 positional arguments. ``python .ci/sizes.py [file or folder ...]``; by default the
package and cli.py.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

FILE_LINES = 300
FUNCTION_LINES = 50
POSITIONAL = 6


def breaches(path: Path) -> Iterator[str]:
    """Measures one file.

    Args:
        path: A Python file.

    Yields:
        A line for each limit that it exceeds.
    """
    text = path.read_text()
    if (lines := len(text.splitlines())) > FILE_LINES:
        yield f"{path}: {lines} lines, at most {FILE_LINES}"
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # lineno is that of "def": decorators stand above it
            if (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name}: {lines} lines, at most {FUNCTION_LINES}"
        elif isinstance(node, ast.Call) and (count := len(node.args)) > POSITIONAL:
            # a starred argument is one of args, whatever its length
            name = ast.unparse(node.func)
            yield (
                f"{path}:{node.lineno}: {name}: {count} positional arguments, "
                f"at most {POSITIONAL}; name them or make an object of them"
            )


def python_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Finds the files to check.

    Args:
        paths: Files and folders.

    Yields:
        The files, and the Python files below the folders in the order of their names.
    """
    for path in paths:
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]] or [Path("fmerge"), Path("cli.py")]
    found = [line for path in python_files(given) for line in breaches(path)]
    print("\n".join(found) or "sizes: every file, function and call is within its limit")
    sys.exit(bool(found))
