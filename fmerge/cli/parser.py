"""The parser of the command line: help of one screen and a half, and errors of one line."""

import sys
from collections.abc import Mapping, Sequence
from shutil import get_terminal_size
from typing import Any, ClassVar, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from fmerge.cli.classes import CLASSES, listing, spelled
from fmerge.cli.given import (
    config_files,
    places,
    prepared,
    read_yaml,
    top_level,
    without_foreign,
    wrong_config,
)
from fmerge.cli.help import ShortHelp, arrange, epilog
from fmerge.cli.messages import one_line


class FMergeParser(LightningArgumentParser):
    """LightningCLI's parser with our order of options and our error messages.

    Attributes:
        foreign: Options of other commands that this one lacks, as of ``top_level``; a
            configuration file may have them. None where this is no command's parser.
        skipped: Configuration files of the present command line to what was skipped in them.
        part: Which part of a command's help is printed; the short one where this is empty.
    """

    foreign: Mapping[str, bool] | None = None
    # of the present command line: jsonargparse makes a parser for every class, which has errors
    # of its own but does not know where its options came from
    _args: ClassVar[list[str]] = []
    skipped: ClassVar[dict[str, list[str]]] = {}
    part = ""  # of a command's help; see help.py

    def format_help(self, *formatter: Any) -> str:
        """Lays out the help of a command, the part of it that was asked for.

        Args:
            formatter: Passed on.

        Returns:
            The help text.
        """
        if self.foreign is None:  # help of the program or of a class, which has no groups
            text: str = super().format_help(*formatter)
            return text
        arrange(self, self.part)
        self.usage = f"{self.prog.replace(' [options]', '')} [options]"
        if self.part:
            text = super().format_help(*formatter)
            return text
        self.formatter_class = ShortHelp
        text = super().format_help(*formatter)
        listed = epilog(self, CLASSES.__getitem__, get_terminal_size().columns - 2)
        return "\n".join([text.rstrip(), *listed, ""])

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Parses a command line, once its configuration files have proved readable.

        Args:
            args: The command line; the process's own when None.
            rest: Passed on.
            options: Passed on.

        Returns:
            What was given.
        """
        given = spelled(prepared(command_line(args)))
        if listed := listing(given):
            sys.stdout.write(f"{listed}\n")
            sys.exit(0)
        for path in config_files(given):
            if wrong := wrong_config(path):
                self.error(wrong)
        if self._subcommands_action:
            FMergeParser._args, FMergeParser.skipped = given, {}
        return super().parse_args(given, *rest, **options)

    def parse_string(self, content: str, path: Any = "", *rest: Any, **options: Any) -> Any:
        """Parses a configuration file, without what belongs to other commands.

        Args:
            content: What it holds.
            path: Its name.
            rest: Passed on.
            options: Passed on.

        Returns:
            What it gives.
        """
        if self.foreign:
            content, left = without_foreign(content, self.foreign)
            if left:
                FMergeParser.skipped[str(path)] = left
        return super().parse_string(content, path, *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the process with one line and exit code 2.

        Args:
            message: The parser's message, of any number of lines.
            ex: Where it comes from.
        """
        if self.foreign is None and not self._subcommands_action:
            owner = next(iter(self.groups or {}), "")
            names = [action.dest for action in self._actions if action.dest != "help"]
            options = [name for name in names if not name.endswith(".help")]
            line = one_line(message, options, lambda key: _place(owner, key), owner)
        else:
            options = [
                option
                for parser in self._all_parsers()
                for action in parser._actions
                for option in action.option_strings
            ]
            line = one_line(message, options)
        sys.stderr.write(f"fmerge: error: {line}\n")
        sys.exit(2)

    def _all_parsers(self) -> list[Any]:
        subcommands = self._subcommands_action
        return [self, *(subcommands._name_parser_map.values() if subcommands else [])]


def command_line(args: Sequence[Any] | None) -> list[str]:
    """Gives a command line as text.

    Args:
        args: The command line without the program's name; the process's own when None.

    Returns:
        Its arguments.
    """
    return [str(one) for one in (sys.argv[1:] if args is None else args)]


def share_files(parsers: Mapping[str, Any]) -> None:
    """Lets the commands share configuration files: each skips the options of the others.

    Args:
        parsers: Command to parser.
    """
    options = {name: top_level(parser._actions) for name, parser in parsers.items()}
    for name, parser in parsers.items():
        foreign: dict[str, bool] = {}
        for other in options.values():
            for key, nests in other.items():
                if key not in options[name]:
                    foreign[key] = foreign.get(key, False) or nests
        parser.foreign = foreign


def _place(owner: str, key: str) -> str:
    """Names where an option of a class was given, as far as it can be found."""
    args = FMergeParser._args
    found = places([read_yaml(path) for path in config_files(args)], args, owner, key)
    return f"--{found[0]}" if found else f"{owner}.{key}"
