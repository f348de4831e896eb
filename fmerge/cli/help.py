"""The help of a command: fmerge's own options with one line each; all of it where it is asked for.

``--help`` of a command fits one screen and a half. ``--help-trainer`` has Lightning's options and
``--help-all`` everything, with types, defaults and whole explanations.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Final

from jsonargparse import DefaultHelpFormatter
from jsonargparse._actions import _ActionConfigLoad

from fmerge.errors import classes_of, shortened

TRAINER: Final = "Lightning's own: device, precision, processes, callbacks; checkpoints of a fit"
_OTHER: Final = "Other options"

GROUPS: Final[Mapping[str, str]] = {
    "Models and output": "experts expert task base mergekit output overwrite dry_run build"
    " ckpt_path",
    "Method and heads": "method coefficients labels baselines budget heads refit_heads"
    " refit_examples refit_seed",
    "Training of the best merge": "polish_steps polish_loss polish_anchor polish_learning_rate",
    "What is saved": "dtype max_shard_size adapter_rank push_to_hub push_private save_every",
    "Fisher": "fisher estimator split examples samples until standard_error fallback seed",
    "Search for the coefficients": "optimizer",
    "Data and model": "data model",
    _OTHER: "",
    TRAINER: "trainer checkpoint",
}
"""Title of a group to the first parts of the names of its options, in the order of the help."""

_TITLES: Final = {name: title for title, names in GROUPS.items() for name in names.split()}
_LISTED: Final = {"method": "Methods", "search": "Searches"}
"""The last part of an option whose classes are listed to the title of the list."""

_COLUMN: Final = 30
"""Where explanations begin, unless a name is longer."""

_ABOUT: Final = {
    "model": "What reads the models, such as RankChoice; --model.help lists them",
    "help": "This help",
    "config": "YAML file of options; of several, the last one counts",
    "print_config": "Print all options as such a file, and exit",
    "seed_everything": "Seed of all random numbers",
}
"""Options of Lightning and jsonargparse in plain words."""


class ShortHelp(DefaultHelpFormatter):
    """One line for each option: its name, what it is, and its default, or that it is required."""

    def _format_action(self, action: argparse.Action) -> str:
        names = [one for one in action.option_strings if not one.endswith(("+", ".help"))]
        if action.help == argparse.SUPPRESS or isinstance(action, _ActionConfigLoad) or not names:
            return ""
        text = _ABOUT.get(action.dest, action.help or "")
        indent = max(_COLUMN, len(name := ", ".join(names)) + 3)
        default = "" if isinstance(action, argparse._HelpAction) else _default(action)
        default = " [required]" if action.required else default
        room = self._width - indent - len(default)
        return f"  {name:{indent - 3}} {clause(text, room)}{default}\n"


class HelpPart(argparse._HelpAction):
    """Prints another part of the help, and ends the process."""

    def __call__(self, parser: Any, *rest: Any, **options: Any) -> None:
        """Prints the part that the option is named after; see ``argparse.Action``.

        Args:
            parser: The command's.
            rest: Passed on.
            options: Passed on.
        """
        parser.part = self.dest
        super().__call__(parser, *rest, **options)


def add_parts(parser: Any) -> None:
    """Adds the options that print more of the help.

    Args:
        parser: A command's.
    """
    parser.add_argument("--help-all", action=HelpPart, help="All options, with types, in full.")
    about = "Lightning's own options, --trainer.NAME, in full."
    parser.add_argument("--help-trainer", action=HelpPart, help=about)


def asks_for_help(args: Sequence[str]) -> bool:
    """Tells whether a command line asks for a command's help and nothing else.

    Args:
        args: The command line.

    Returns:
        Whether no other command's options are needed.
    """
    asked = {"-h", "--help", "--help-all", "--help-trainer"}
    return args[-1:] != [] and args[-1] in asked and len(args) < 3


def arrange(parser: Any, part: str) -> None:
    """Puts a command's options into groups, in order.

    Args:
        parser: The command's.
        part: ``help_all``, ``help_trainer``, or empty for the short help.
    """
    found: dict[str, list[Any]] = {title: [] for title in GROUPS}
    for group in parser._action_groups:
        for action in group._group_actions:
            if group.title != "Linked arguments":
                found[_TITLES.get(action.dest.partition(".")[0], _OTHER)].append(action)
    parser._action_groups = []
    for title, actions in found.items():
        kept = {"help_all": True, "help_trainer": title == TRAINER}.get(part, title != TRAINER)
        if actions and kept:
            group = parser.add_argument_group(title)
            group._group_actions = sorted(actions, key=_place)


def _place(action: argparse.Action) -> tuple[int, int]:
    first = action.dest.partition(".")[0]
    names = GROUPS.get(_TITLES.get(first, ""), "").split()
    is_help = isinstance(action, argparse._HelpAction)
    return (names.index(first) if first in names else 0, not is_help)


def epilog(
    parser: Any, classes: Callable[[str], tuple[ModuleType, type]], width: int
) -> Iterator[str]:
    """Lists the classes that the options of a command take.

    Args:
        parser: The command's.
        classes: The last part of an option to where its classes are, and of what kind.
        width: Of a line, in characters.

    Yields:
        Lines.
    """
    options = {one for action in parser._actions for one in action.option_strings}
    for option in sorted(options):
        if title := _LISTED.get(option.removeprefix("--").rpartition(".")[2]):
            kind = option.rpartition(".")[2].removeprefix("--")
            yield f"\n{title} ({option} NAME; {option}.help NAME lists the parameters):"
            yield from rows(classes_of(*classes(kind)), width)


def rows(found: Mapping[str, type], width: int | None = None) -> Iterator[str]:
    """Lists classes with a line each, the first of their documentation.

    Args:
        found: Name to class.
        width: Of a line, in characters; the whole first paragraph if left out.

    Yields:
        Lines.
    """
    longest = max(map(len, found))
    for name, one in sorted(found.items()):
        text = " ".join((inspect.getdoc(one) or "").partition("\n\n")[0].split())
        if width is None:
            yield f"{name:{longest}}  {text}"
        else:
            brief = re.sub(r" \([^()]*\d{4}[^()]*\)", "", text)  # without the source
            yield f"  {name:{longest}}  {clause(brief, width - longest - 4)}"


def _default(action: argparse.Action) -> str:
    value = action.default
    plain = isinstance(value, bool | int | float | str) and value != argparse.SUPPRESS
    text = str(value).lower() if isinstance(value, bool) else value
    return f" [{text}]" if plain and len(str(value)) <= 12 else ""


def clause(text: str, most: int) -> str:
    """Gives the beginning of an explanation that fits, up to the end of a clause.

    Args:
        text: The explanation.
        most: How many characters fit.

    Returns:
        Its first sentence, without a stop; the clauses of it that fit, if it is longer.
    """
    whole = " ".join(text.split()).replace("``", "")
    sentence = re.split(r"(?<!et al)\.(?: |$)", whole, maxsplit=1)[0]
    if len(sentence) <= most:
        return sentence
    ends = [one.start() for one in re.finditer(r"[;:,] | \(", sentence)]
    fitting = [one for one in ends if most // 2 <= one <= most - 2]
    # "null: all" is left out as a whole, where a clause ends before it
    stops = [one for one in fitting if sentence[one] == ";"]
    if stops and sentence[fitting[-1]] == ":":
        fitting = stops
    return f"{sentence[: fitting[-1]]} …" if fitting else shortened(sentence, most)
