"""Parsing errors, as jsonargparse words them, in one line that says what to do."""

import ast
import difflib
import re
import sys
from collections.abc import Callable, Sequence

from fmerge.cli.classes import CLASSES
from fmerge.errors import classes_of, known

# options of earlier versions, and what they are called now
_RENAMED = {"--references": "--baselines"}

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
}
_LONGEST = 100
"""Characters of a value that are shown."""


def one_line(
    message: str,
    options: Sequence[str],
    place: Callable[[str], str] = lambda key: f"--{key}",
    owner: str = "",
) -> str:
    """Rewrites a parser's message as one line that says what to do.

    Args:
        message: As jsonargparse words it.
        options: The options there are, to suggest one for a misspelt one.
        place: Tells where an option of the class was given.
        owner: The class whose options were parsed; empty for those of a command.

    Returns:
        One line: the parameter, what was found, what is known.
    """
    if unrecognized := re.search(r"unrecognized arguments: (\S+)", message):
        name = unrecognized[1].partition("=")[0]
        others = [option for option in options if option != name]
        return f"{name}: no such option; {_suggestion(name, others)}"
    if foreign := re.search(r"Subcommand '(\w+)' does not accept option '([^']+)'", message):
        name = f"--{foreign[2].partition('.')[0]}"
        others = [option for option in options if option != name]
        return f"--{foreign[2]}: no such option of {foreign[1]}; {_suggestion(name, others)}"
    if alien := re.search(r"Option '([^']+)' is not accepted", message):
        close = difflib.get_close_matches(alien[1], options, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{place(alien[1])}: {owner} has no such option; {hint}known: {known(options)}"
    if required := re.search(r"arguments are required: (.+)", message):
        names = [name.partition(".")[2] or name for name in required[1].split(", ")]
        named = f"{owner}: {', '.join(names)}" if owner else ", ".join(f"--{n}" for n in names)
        return f"{named}: required but not given; --help tells what it takes"
    if valueless := re.search(r"argument (\S+): expected one argument", message):
        return f"{valueless[1]}: needs a value, such as true; --help tells what it takes"
    keys = re.findall(r'Parser key "([^"]+)"', message)
    if not keys:
        return _folded(message)
    key = place(keys[-1]) if owner else "--" + ".".join(keys)
    kind = keys[-1].rpartition(".")[2]
    nested = re.search(r"NestedArg\(key='([^']+)'", message)
    if nested and "dot import path" not in message and "given class_path" not in message:
        return f"{key}.{nested[1]}: name the class first, with {key}; known: {_choices(kind)}"
    return f"{key}: {_of_value(message, kind)}"


def _of_value(message: str, kind: str) -> str:
    """Words what is wrong with the value of an option, of which an error may name many types."""
    if unknown := re.search(r"Expected a dot import path string: (\S+)", message):
        return f"unknown class '{unknown[1]}'; known: {_choices(kind)}"
    if broken := re.search(r"Problem with given class_path '([^']*)':\s*(.+)", message):
        return f"cannot import the class '{broken[1]}' ({broken[2]}); known: {_choices(kind)}"
    if kind == "model" and "not correspond to a subclass of LightningModule" in message:
        return (
            f"must be a LightningModule{_found(message)}; for a network, derive a "
            "class from fmerge.modules.OwnModule whose network(self, outputs) makes it "
            "(docs/own_modules.md)"
        )
    if lacking := _lacking(message):
        return f"{lacking}; write it"
    if re.search(r"Expected an instantiatable class|Not a valid subclass", message):
        return (
            f"names no class that fits{_found(message)}; give class_path; known: {_choices(kind)}"
        )
    expected = [
        one
        for one in re.findall(r"Expected an? (<class '\w+'>|typing\.Literal\[[^\]]*\])", message)
        if one != "<class 'NoneType'>"
    ]
    if not expected:
        text = re.sub(r'Parser key "[^"]+":\s*', "", message)
        return _folded(text)
    choices = list(dict.fromkeys(literal for one in expected for literal in _literals(one)))
    if choices and all(one.startswith("typing") or one == "<class 'list'>" for one in expected):
        several = ", or a list of them" if "<class 'list'>" in expected else ""
        return f"unknown value{_found(message, '')}; known: {', '.join(choices)}{several}"
    words = list(dict.fromkeys(map(_word, expected)))
    found = _found(message)
    flag = words[0] == "a text" and found.endswith(("'False'", "'True'"))
    hint = "; YAML reads no, off, yes and on so: write the word in quotes" if flag else ""
    return f"expected {' or '.join(words)}{found}{hint}"


def _lacking(message: str) -> str:
    """Names what an abstract class of one's own lacks."""
    path = re.search(r"(?:Given value|Got value): '?([A-Za-z_][\w.]*\.\w+)'?", message)
    module, _, name = path[1].rpartition(".") if path else ("", "", "")
    # imported by the parser already
    missing = getattr(getattr(sys.modules.get(module), name, None), "__abstractmethods__", ())
    return f"{name} lacks {known(missing)}" if missing else ""


def _word(kind: str) -> str:
    if literals := _literals(kind):
        return " or ".join(f"'{one}'" for one in literals)
    name = kind.split("'")[1]
    return _WORDS.get(name, name)


def _literals(kind: str) -> list[str]:
    if not kind.startswith("typing.Literal"):
        return []
    return [str(one) for one in ast.literal_eval(kind.removeprefix("typing.Literal"))]


def _found(message: str, before: str = ", but found") -> str:
    # the innermost value, without what the parser says of those around it
    found = re.search(
        r"(?:Given value|Got value): (.+?)(?=\s+Given value type:|\Z)", message, flags=re.DOTALL
    )
    if found is None:
        return ""
    value = re.sub(r" - Expected an? <class '\w+'>$", "", _folded(found[1]))
    short = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
    return f"{before} '{short}'"


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _suggestion(name: str, options: Sequence[str]) -> str:
    if name in _RENAMED:
        return f"it is called {_RENAMED[name]} now"
    close = difflib.get_close_matches(name, options, n=1)
    return f"did you mean {close[0]}?" if close else "see --help"


def _choices(kind: str) -> str:
    return known(classes_of(*CLASSES[kind]) if kind in CLASSES else [])
