"""The command line: LightningCLI with ``fit``, ``validate``, ``test``, ``fisher`` and ``merge``."""

import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from fmerge import __version__
from fmerge.cli.defaults import CHECKPOINT, SILENCED, check_devices, say, with_length
from fmerge.cli.given import expanded, names_own_data
from fmerge.cli.help import add_parts, asks_for_help
from fmerge.cli.parser import FMergeParser, command_line, share_files
from fmerge.cli.recipes import with_recipe
from fmerge.data import MultiTask
from fmerge.errors import UserError
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.report import score_table
from fmerge.store import adapters_on, check_resume, disk_trouble, first_class_path, load_lightning
from fmerge.store.run_folder import RunFolder
from fmerge.store.upload import check_push, push
from fmerge.system.paths import expand, path_of
from fmerge.system.watchdog import LostProcessError, watch_processes
from fmerge.trainer import FMergeTrainer


class _ProgressBar(RichProgressBar):
    @property
    def predict_description(self) -> str:
        return "Fisher"  # the one pass under Trainer.predict that shows a bar


class FMergeCLI(LightningCLI):
    """LightningCLI with the Trainer's ``fisher`` and ``merge`` as further commands."""

    _adding = ""

    def __init__(self, *given: Any, **options: Any) -> None:
        # no line but one that asks for help alone is known to need one command's options at most
        line = self._line = command_line(options.get("args"))
        self._helped = line[0] if asks_for_help(line) else ""
        super().__init__(*given, **options)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Names the Trainer's methods that are commands, and the arguments the CLI fills.

        Returns:
            Command name to the arguments that are not options.
        """
        lightning = LightningCLI.subcommands()
        return {
            "fit": lightning["fit"],
            "fisher": {"model", "datamodule"},
            "merge": {"model", "datamodule"},
            "validate": lightning["validate"],
            "test": lightning["test"],
        }

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        if self._helped not in {"", subcommand}:
            return self.init_parser(**kwargs)
        self._adding = subcommand
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":  # where ModelCheckpoint puts its folder
            parser.link_arguments("output", "trainer.default_root_dir")
        return parser

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        share_files(self._subcommand_parsers)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of single commands.

        Args:
            parser: The parser of the command that is being prepared.
        """
        parser.set_defaults({"model": {"class_path": "fmerge.modules.TextClassifier"}})
        add_parts(parser)
        if self._adding == "merge":
            parser.add_lightning_class_args(MergeOptimizer, "optimizer")
            parser.add_argument("--mergekit", type=str | None, help=_RECIPE)  # see with_recipe
            parser.add_argument("--push_to_hub", type=str | None, help=_PUSH)
            parser.add_argument("--push_private", type=bool, default=False, help=_PRIVATE)
        if self._adding == "fit":
            parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
            parser.set_defaults(CHECKPOINT)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the command line, once the classes it chooses have become the defaults.

        jsonargparse passes the settings of a default class on to the class that replaces it, and
        refuses the options of a class where there is no default. So a first pass finds the classes
        alone, and sets them as the defaults of the second.

        Args:
            parser: The program's parser.
            args: The command line; the process's own when None.
        """
        given = sys.argv[1:] if args is None else args
        if isinstance(given, list):
            given = [str(one) for one in given if not str(one).startswith("--print_config")]
            if any(one.startswith("--optimizer.search.") for one in given):
                search = MergeOptimizer.default_search
                path = f"{search.__module__}.{search.__qualname__}"
                self._parser("merge").set_defaults({"optimizer.search": {"class_path": path}})
            found = parser.parse_args(given, _skip_validation=True)
            with adapters_on(found.get(found.subcommand).get("base")):
                own = first_class_path(_models_of(found))
            if own:
                # a class that was named stays: a default is what is given to the others
                self._parser(found.subcommand).set_defaults({"model": {"class_path": own}})
                found = parser.parse_args(given, _skip_validation=True)
            for key in ("model", "optimizer.search"):
                if chosen := found.get(f"{found.subcommand}.{key}.class_path"):
                    self._parser(found.subcommand).set_defaults({key: {"class_path": chosen}})
        super().parse_arguments(parser, args)
        expanded(self.config)

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"--seed_everything: {error}") from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        check_devices(config)
        config = with_length(config) if self.subcommand == "fit" else config
        given = config.get("callbacks") or []
        bars = any(
            isinstance(one, ProgressBar) for one in (given if isinstance(given, list) else [given])
        )
        if config.get("enable_progress_bar") is not False and not bars:
            callbacks = [*callbacks, _ProgressBar()]
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (ValueError, TypeError) as error:  # an unknown device, precision or strategy
            reason = " ".join(str(error).split())
            raise UserError(f"--trainer: {reason}") from error

    def _parse_ckpt_path(self) -> None:
        """Checks a checkpoint before Lightning takes the model's arguments from it.

        Raises:
            UserError: If it is damaged, would run code, or was made with another model class.
        """
        given = self.config.get(self.config.get("subcommand") or "")
        if given is not None and (path := given.get("ckpt_path")):
            if given.trainer.num_nodes == 1:  # on several, all of them say what one of them lacks
                check_resume(path)
            if Path(path).is_file():
                found = load_lightning(Path(path)).get("hyper_parameters", {}).get("_class_path")
                own = given.model.class_path
                if found not in {None, own}:  # naming a class imports its module
                    raise UserError(
                        f"--ckpt_path {path}: was made with {found}, but --model is {own}; give "
                        "the class that it was made with"
                    )
        super()._parse_ckpt_path()

    def before_instantiate_classes(self) -> None:
        """Says which options of a configuration file are of other commands only."""
        for path, names in FMergeParser.skipped.items():
            say(f"{path}: skipped options of other commands: {', '.join(names)}")

    def before_fit(self) -> None:
        """Hands the resolved configuration to the Trainer."""
        self._resolve()

    def before_merge(self) -> None:
        """Hands the resolved configuration to the Trainer, and checks what follows the merge."""
        self._resolve()
        check_push(self.config["merge"].push_to_hub, self.config["merge"].push_private)

    def after_merge(self) -> None:
        """Uploads what the merge has saved, if that was asked for."""
        given = self.config["merge"]
        if given.push_to_hub and not given.dry_run and self.trainer.is_global_zero:
            run = RunFolder(path_of(given.output))
            folder = run.path if given.build is None else run.point(given.build)
            say(f"uploaded: {push(folder / 'merged', given.push_to_hub, given.push_private)}")

    def _resolve(self) -> None:
        self.trainer.command = shlex.join(["fmerge", *self._line])  # type: ignore[attr-defined]
        parser = self._parser(self.subcommand)
        self.trainer.resolved_config = parser.dump(  # type: ignore[attr-defined]
            self.config[self.subcommand], skip_none=True, skip_link_targets=True
        )


_RECIPE = "A recipe of mergekit (YAML), instead of experts, base, method and dtype."
_PUSH = "Upload what was saved to this repository of the hub, owner/name; HF_TOKEN allows it."
_PRIVATE = "Whether that repository must be private."


def _models_of(found: Any) -> list[str]:
    """Lists the trained models that a command was given, which tell the kind of its module."""
    options = found.get(found.subcommand)
    if found.subcommand == "merge":
        experts = options.get("experts") or {}
        given = [experts[name] for name in experts] if hasattr(experts, "keys") else []
    elif found.subcommand == "fisher":
        given = [options.get("expert")]
    elif found.subcommand in {"validate", "test"}:
        given = [options.get("model.init_args.path")]
    else:  # a fit may give a head of another kind
        given = []
    paths = [one if isinstance(one, str) or one is None else one.get("path") for one in given]
    return [one for one in paths if isinstance(one, str)]


def main(args: list[str] | None = None) -> None:
    """Runs a command; a user's mistake ends it with one line and exit code 2.

    Args:
        args: The command line without the program's name; the process's own when None.
    """  # noqa: DOC501 - errors that are not the user's pass through
    # Lightning reports devices and finished loops, which tells users of fmerge nothing new
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for known in SILENCED:
        warnings.filterwarnings("ignore", f".*{known}.*")
    try:
        with watch_processes():
            _run(with_recipe(command_line(args)))
    except (UserError, ValueError) as error:
        # jsonargparse wraps what a constructor raises into an error of its own
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        sys.stderr.write(f"fmerge: error: {cause}\n")
        sys.exit(2)
    except MisconfigurationException as error:
        reason = " ".join(str(error).split())
        sys.stderr.write(f"fmerge: error: --trainer: {reason}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("fmerge: interrupted\n")
        sys.exit(130)
    except LostProcessError as error:
        sys.stderr.write(f"fmerge: error: {error}\n" if str(error) else "")
        sys.exit(1)
    except (OSError, RuntimeError) as error:
        if (trouble := disk_trouble(error)) is None:
            raise
        sys.stderr.write(f"fmerge: error: {trouble}\n")
        sys.exit(2)


def _run(args: list[str] | None) -> None:
    line = command_line(args)
    if line[:1] == ["compare"]:
        _compare(line[1:])
        return
    # classes of one's own are found in the current folder, behind all that is installed
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    own = names_own_data(line)
    FMergeCLI(
        LightningModule,
        LightningDataModule if own else MultiTask,
        subclass_mode_data=own,
        trainer_class=FMergeTrainer,
        trainer_defaults={"logger": False, "enable_model_summary": False},
        subclass_mode_model=True,
        save_config_callback=None,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        parser_class=FMergeParser,
        parser_kwargs={
            "prog": "fmerge",
            "description": "Fine-tune models, estimate their Fishers and merge them. "
            "'fmerge COMMAND --help' lists a command's options. 'fmerge compare FOLDER...' prints "
            "the scores of several merges in one table.",
            "version": __version__,
        },
        args=args,
    )


def _compare(folders: list[str]) -> None:
    if {"-h", "--help"} & set(folders):
        say(
            "usage: fmerge compare FOLDER [FOLDER ...]\n\n"
            "Print the test scores of several merges of the same experts in one table."
        )
        return
    score_table.main(*(Path(expand(one)) for one in folders))
