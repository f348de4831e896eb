"""Help that starts with fmerge's own options, and parsing errors of one line."""

import ast
import difflib
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from fmerge import data, methods, modules, search
from fmerge.errors import classes_of, known

# the groups that several commands share, in the order of the help
_TITLES = {
    "optimizer": "Search for the coefficients",
    "data": "Data",
    "model": "Model",
    "checkpoint": "Which checkpoint is kept (Lightning's ModelCheckpoint)",
    "trainer": "Lightning's Trainer: device, precision, processes, callbacks",
}
# the last part of an option that takes a class: where its classes are, and of what kind
_CLASSES: dict[str, tuple[ModuleType, type]] = {
    "method": (methods, methods.MergeMethod),
    "search": (search, search.Search),
    "tasks": (data, data.TaskData),
    "model": (modules, modules.TaskModule),
}
# options of earlier versions, and what they are called now
_RENAMED = {"--references": "--baselines"}


class FMergeParser(LightningArgumentParser):
    """LightningCLI's parser with our order of options and our error messages."""

    def format_help(self, *formatter: Any) -> str:
        """Lays out the help: the command's own options, then search, data, model, Trainer.

        Args:
            formatter: Passed on.

        Returns:
            The help text.
        """
        if not self.groups:  # the program itself: its commands and nothing else
            text: str = super().format_help(*formatter)
            return text
        for name, group in self.groups.items():
            group.title = _TITLES.get(name, group.title)
        last = list(_TITLES.values())
        own, general, rest = [], [], []
        for group in self._action_groups:
            if group.title in last:
                rest.append(group)
            elif group.title in {"options", "positional arguments"}:
                general.append(group)
            elif group.title != "Linked arguments":
                group.title = "options of this command"  # not the description once more
                own.append(group)
        rest.sort(key=lambda group: last.index(str(group.title)))
        self._action_groups = own + rest[:-1] + general + rest[-1:]
        self.usage = f"{self.prog.replace(' [options]', '')} [options]"
        text = super().format_help(*formatter)
        return text

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Parses a command line, once its configuration files have proved readable.

        Args:
            args: The command line; the process's own when None.
            rest: Passed on.
            options: Passed on.

        Returns:
            What was given.
        """
        given = [str(one) for one in (sys.argv[1:] if args is None else args)]
        for option, value in itertools.pairwise([*given, ""]):
            name, _, joined = option.partition("=")
            if name in {"-c", "--config"} and (wrong := _wrong_config(Path(joined or value))):
                self.error(wrong)
        return super().parse_args(args, *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the process with one line and exit code 2.

        Args:
            message: The parser's message, of any number of lines.
            ex: Where it comes from.
        """
        options = [
            option
            for parser in self._all_parsers()
            for action in parser._actions
            for option in action.option_strings
        ]
        sys.stderr.write(f"fmerge: error: {one_line(message, options)}\n")
        sys.exit(2)

    def _all_parsers(self) -> list[Any]:
        subcommands = self._subcommands_action
        return [self, *(subcommands._name_parser_map.values() if subcommands else [])]


def names_own_data(args: Sequence[str]) -> bool:
    """Tells whether a command line names a class of its own for the data.

    Args:
        args: The command line.

    Returns:
        Whether ``--data`` is a class path, or a configuration file has one under ``data``.
    """
    for option, value in itertools.pairwise([*args, ""]):
        name, _, joined = option.partition("=")
        given = joined or value
        if name == "--data" and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", given):
            return not given.endswith((".yaml", ".yml", ".json"))
        if name in {"-c", "--config"} and Path(given).is_file() and not _wrong_config(Path(given)):
            data = (yaml.safe_load(Path(given).read_bytes()) or {}).get("data")
            if isinstance(data, dict) and "class_path" in data:
                return True
    return False


def _wrong_config(path: Path) -> str:
    """Words what is wrong with a configuration file, if it is there and something is."""
    if not path.is_file():
        return ""
    try:
        found = yaml.safe_load(path.read_bytes())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        return f"--config {path}: is no YAML ({error}); mend the file"
    if found is None or isinstance(found, dict):
        return ""
    return f"--config {path}: holds {type(found).__name__}, but options by name are needed"


def one_line(message: str, options: list[str]) -> str:
    """Rewrites a parser's message as one line that says what to do.

    Args:
        message: As jsonargparse words it.
        options: The options there are, to suggest one for a misspelt one.

    Returns:
        One line: the parameter, what was found, what is known.
    """
    keys = re.findall(r'Parser key "([^"]+)"', message)
    key = "--" + ".".join(keys)
    kind = keys[-1].rpartition(".")[2] if keys else ""
    if unknown := re.search(r"Expected a dot import path string: (\S+)", message):
        return f"{key}: unknown class '{unknown[1]}'; known: {_choices(kind)}"
    if literal := re.search(r"Expected a typing\.Literal(\[.*?\])\. Got value: (.+)", message):
        choices = ast.literal_eval(literal[1])
        return f"{key}: unknown value '{literal[2].strip()}'; known: {', '.join(map(str, choices))}"
    expected = [one.strip() for one in re.findall(r"- Expected a (.+)", message)]
    if len(expected) == 2 and expected[0].startswith("typing.L") and "'list'" in expected[1]:
        found = re.search(r"Given value: (.+)", message)
        choices = ast.literal_eval(expected[0].removeprefix("typing.Literal"))
        return (
            f"{key}: unknown value '{found[1] if found else ''}'; known: "
            f"{', '.join(map(str, choices))}, or a list of them"
        )
    if nested := re.search(r"NestedArg\(key='(\w+)'", message):
        return f"{key}.{nested[1]}: name the class first, with {key}; known: {_choices(kind)}"
    if required := re.search(r"arguments are required: (.+)", message):
        names = [f"--{name.partition('.')[2] or name}" for name in required[1].split(", ")]
        return f"{', '.join(names)}: required but not given; --help tells what it takes"
    if valueless := re.search(r"argument (\S+): expected one argument", message):
        return f"{valueless[1]}: needs a value, such as true; --help tells what it takes"
    if unrecognized := re.search(r"unrecognized arguments: (\S+)", message):
        name = unrecognized[1].partition("=")[0]
        return f"{name}: no such option; {_suggestion(name, options)}"
    if foreign := re.search(r"Subcommand '(\w+)' does not accept option '([^']+)'", message):
        name = f"--{foreign[2].partition('.')[0]}"
        others = [option for option in options if option != name]
        return f"--{foreign[2]}: no such option of {foreign[1]}; {_suggestion(name, others)}"
    if alien := re.search(r"Option '([^']+)' is not accepted", message):
        return (
            f"{alien[1]}: no such option of the class that was named; --help, or --method.help, "
            "--optimizer.search.help or --model.help with the class, tells which it has"
        )
    if kinds := [f"a {one}" for one in expected if one != "<class 'NoneType'>"]:
        return f"{key}: Expected {' or '.join(dict.fromkeys(kinds))}"
    text = re.sub(r'Parser key "[^"]+":\s*', "", message)
    return (f"{key}: " if keys else "") + re.sub(r"\s+", " ", text).strip()


def _suggestion(name: str, options: list[str]) -> str:
    if name in _RENAMED:
        return f"it is called {_RENAMED[name]} now"
    close = difflib.get_close_matches(name, options, n=1)
    return f"did you mean {close[0]}?" if close else "see --help"


def _choices(kind: str) -> str:
    return known(classes_of(*_CLASSES[kind]) if kind in _CLASSES else [])
