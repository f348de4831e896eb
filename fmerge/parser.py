"""Help that starts with fmerge's own options, and parsing errors of one line."""

import ast
import difflib
import re
import sys
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from fmerge import data, methods, modules, search
from fmerge.errors import known

_TITLES = {
    "trainer": "Lightning's Trainer: device, precision, processes, callbacks",
    "model": "Model",
    "data": "Data",
    "optimizer": "Search for the coefficients",
    "checkpoint": "Which checkpoint is kept (Lightning's ModelCheckpoint)",
}
_CLASSES = {
    "method": methods.__all__,
    "search": search.__all__,
    "tasks": data.__all__,
    "model": modules.__all__,
}
_NOT_CHOICES = {
    "MergeMethod", "Search", "Trial", "Example", "MultiTask", "Split", "TaskData", "TaskModule",
    "FisherPass", "HeadInputs", "probe_accuracy",
}  # fmt: skip


class FMergeParser(LightningArgumentParser):
    """LightningCLI's parser with our order of options and our error messages."""

    def format_help(self) -> str:
        """Lays out the help: the command's own options, then search, model, data, Trainer.

        Returns:
            The help text.
        """
        order = ["optimizer", "checkpoint", "model", "data", "trainer"]
        groups = {group.title: group for group in self._action_groups}
        for name, group in self.groups.items() if self.groups else []:
            group.title = _TITLES.get(name, group.title)
            groups[group.title] = group
        last = [_TITLES[name] for name in order]
        general = [g for g in self._action_groups if g.title in {"options", "positional arguments"}]
        own = [g for g in self._action_groups if g not in general and g.title not in last]
        rest = sorted(
            (g for g in self._action_groups if g.title in last), key=lambda g: last.index(g.title)
        )
        self._action_groups = own + rest[:-1] + general + rest[-1:]
        self.usage = f"{self.prog} [options]" if own or rest else None
        text: str = super().format_help()
        return text

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
    if unknown := re.search(r"Expected a dot import path string: (\S+)", message):
        kind = keys[-1].rpartition(".")[2] if keys else ""
        return f"{key}: unknown class '{unknown[1]}'; known: {_choices(kind)}"
    if literal := re.search(r"Expected a typing\.Literal(\[.*?\])\. Got value: (.+)", message):
        choices = ast.literal_eval(literal[1])
        return f"{key}: unknown value '{literal[2].strip()}'; known: {', '.join(map(str, choices))}"
    if required := re.search(r"arguments are required: (.+)", message):
        names = [f"--{name.partition('.')[2] or name}" for name in required[1].split(", ")]
        return f"{', '.join(names)}: required but not given; --help tells what it takes"
    if unrecognized := re.search(r"unrecognized arguments: (\S+)", message):
        name = unrecognized[1].partition("=")[0]
        close = difflib.get_close_matches(name, options, n=1)
        return f"{name}: no such option; " + (
            f"did you mean {close[0]}?" if close else "see --help"
        )
    if expected := re.search(r"- (Expected (?!a <class 'NoneType'>).+)", message):
        return f"{key}: {expected[1].strip()}"
    text = re.sub(r'Parser key "[^"]+":\s*', "", message)
    return (f"{key}: " if keys else "") + re.sub(r"\s+", " ", text).strip()


def _choices(kind: str) -> str:
    return known(set(_CLASSES.get(kind, [])) - _NOT_CHOICES)
