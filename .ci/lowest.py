"""Prints pip constraints that pin every direct dependency to its lower bound.

``pyproject.toml`` says ``name>=1.2``; this prints ``name==1.2``. What the dependencies need in
turn is left to pip. ``--torch VERSION`` takes another torch than the lowest declared.
"""

import argparse
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

LOWER = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?\s*(>=|==)\s*(?P<version>[0-9][^,;\s]*)")


def lowest(requirements: Iterable[str]) -> dict[str, str]:
    """Reads the lower bounds of requirements; one without a bound is left out.

    Args:
        requirements: Requirements as ``pyproject.toml`` has them.

    Returns:
        Version by package.
    """
    matches = (LOWER.match(requirement) for requirement in requirements)
    return {match["name"]: match["version"] for match in matches if match}


def declared(project: dict) -> list[str]:
    """Collects the requirements of a project and of the extras that its tests need.

    Args:
        project: The table ``[project]``.

    Returns:
        The requirements, the project's own first.
    """
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(line for name in EXTRAS for line in extras[name])]


EXTRAS = ("hdf5", "demo", "test")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", help="this torch in place of the lowest declared")
    arguments = parser.parse_args()
    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    pins = lowest(declared(tomllib.loads(pyproject.read_text())["project"]))
    if arguments.torch:
        pins["torch"] = arguments.torch
    for name, version in sorted(pins.items()):
        print(f"{name}=={version}")
